"""Writing files whole or not at all, and disk faults in words. Low layer: standard library and errors only."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.errors import ConfigError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (errno.EROFS, errno.EACCES, errno.EPERM)
_UNFINISHED = ".tmp"


@contextmanager
def storage_faults(path: Path, key: str = "run_dir") -> Iterator[None]:
    """Turn the operating system's refusal to write `path`, below the folder that `key` names, into a StorageError.

    Raises:
        StorageError: the disk is full or over quota, read-only, not permitted, or failing; a file may not grow; or a
            name is too long.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            reason, hint = "the disk is full", f"free some space, or set {key} to a folder on a larger disk"
        elif error.errno in _NO_ACCESS:
            reason, hint = "writing is not allowed there", f"set {key} to a folder that this user can write"
        elif error.errno == errno.EFBIG:
            reason, hint = "a file has reached its largest size", "raise the limit that `ulimit -f` shows"
        elif error.errno == errno.ENAMETOOLONG:
            reason, hint = "its name is too long for the disk", f"set {key} to a shorter path"
        elif error.errno == errno.EIO:
            reason, hint = "the disk reported an I/O error", f"check the disk, or set {key} to a folder on another one"
        else:
            raise
        raise StorageError(f"{path} must be writable, but {reason} ({error.strerror}); change {key}", [hint]) from error


def sync_folder(folder: Path) -> None:
    """Make the folder's list of names durable, so that a rename survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def own_folder(path: Path, key: str) -> Iterator[None]:
    """Make an empty folder that no other process writes meanwhile; what a killed one left there is removed first.

    The folder stays, to be renamed or removed.

    Args:
        path: the folder, beside which everything exists.
        key: the word that names its place; errors name it.

    Raises:
        ConfigError: another process has it.
        OSError: it cannot be made.
    """
    handle = _locked(path, key)
    try:
        for child in path.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
        yield
    finally:
        os.close(handle)


def _locked(path: Path, key: str) -> int:
    while True:
        path.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ConfigError(f"{key} must not be written by another process, but {path} is; wait for it") from error
        except OSError:
            # A file system without locks.
            return handle
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        # The other one has just renamed or removed what was opened here.
        os.close(handle)


def append_line(path: Path, line: str) -> None:
    """Append a line and make it durable. The rest of one that was cut off by a kill stays a line of its own.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """
    with storage_faults(path), path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        is_cut = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            is_cut = file.read(1) != b"\n"
        file.write(b"\n" * is_cut + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path) -> None:
    """Remove the files that killed processes left of `write_atomically` in a folder. Nobody may be writing there."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        with suppress(OSError):
            path.unlink()


def write_atomically(path: Path, content: str | bytes, key: str = "run_dir") -> None:
    """Write `content` so that a reader, or a crash at any moment, sees the old file or the new one, never a part.

    Missing parent folders are made. Text is UTF-8. `key` names the folder in messages.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """
    data = content.encode() if isinstance(content, str) else content
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    with storage_faults(path, key):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
