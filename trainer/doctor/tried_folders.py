"""Trying a folder as a run would use it, and finding one that works. No torch."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.doctor.surroundings import Surroundings

_BLOCK = bytes(4096)
_REASONS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only"}


@dataclass(frozen=True)
class Tried:
    """The outcome of writing into a folder, or into the nearest one above that exists."""

    folder: Path
    """The folder that was written into."""
    problem: str = ""
    """Reason why it cannot be used, as the end of a sentence; empty if it can."""
    free_bytes: int = 0
    free_files: int | None = None
    """Number of files that can still be made; None if the file system does not limit it."""
    clock_s: float = 0.0
    """Seconds by which the clock of the file system is ahead of this machine's."""
    can_lock: bool = True


def try_folder(folder: Path) -> Tried:
    """Write, lock, rename and remove a small file, as a run does. Nothing stays."""
    nearest = next((one for one in (folder, *folder.absolute().parents) if os.path.lexists(one)), Path("/"))
    if not nearest.is_dir():
        return Tried(nearest, f"{nearest} is no folder")
    try:
        room = os.statvfs(nearest)
        clock_s, can_lock = _written(nearest / f".trident-doctor-{os.getpid()}-{secrets.token_hex(4)}")
    except OSError as error:
        return Tried(nearest, _REASONS.get(error.errno or 0, str(error.strerror)))
    free_files = room.f_favail if room.f_files else None
    return Tried(nearest, "", room.f_bavail * room.f_frsize, free_files, clock_s, can_lock)


def _written(path: Path) -> tuple[float, bool]:
    other = path.with_name(f"{path.name}.renamed")
    try:
        with path.open("xb") as file:
            before = time.time()
            file.write(_BLOCK)
            file.flush()
            os.fsync(file.fileno())
            after = time.time()
            written = os.fstat(file.fileno()).st_mtime
            # Kernels stamp files with a clock that is some milliseconds old.
            clock_s = min(max(written - after, 0.0) + min(written - before, 0.0), written - before, key=abs)
            can_lock = True
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                can_lock = False
        path.rename(other)
        return clock_s, can_lock
    finally:
        for left in (path, other):
            with suppress(OSError):
                left.unlink(missing_ok=True)


def another_folder(around: Surroundings, name: str) -> Path:
    """Return a folder of some name that this user can write, below which there is room; in doubt, one in /tmp."""
    home = around.environ.get("HOME", "")
    above = [Path(home, ".cache", "trident")] if home else []
    above += [Path(place, f"trident-{os.getuid()}") for place in (tempfile.gettempdir(), "/var/tmp")]
    good = (folder for folder in above if not (tried := try_folder(folder)).problem and tried.free_bytes > 1 << 30)
    return next(good, Path(f"/tmp/trident-{os.getuid()}")) / name
