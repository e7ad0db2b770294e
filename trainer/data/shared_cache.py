"""A cache folder that users, processes and machines share: building, waiting, reading and tidying up. No torch.

It is correct without a lock: everybody builds under a name of their own, and a finished folder appears whole. The lock
only saves building the same folder twice.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from trainer.errors import DataError
from trainer.progress import current

POLL_S = 0.2
PATIENCE_S = 5.0
"""Seconds after which the user is told that this process waits."""
LEFT_BEHIND_S = 86_400.0
"""Age in seconds of a partial folder from which on it was left by a killed process, on whatever machine."""
_PARTIAL = ".partial"
_OWNER_BYTES = 200
Made = TypeVar("Made")


def silent(text: str) -> None:
    """Say nothing."""


@contextmanager
def turn(folder: Path, is_done: Callable[[], bool], say: Callable[[str], None]) -> Iterator[bool]:
    """Wait until no other process builds `folder`, or until it is done; yield whether this process has the lock.

    The operating system takes the lock from a process that ends, however it ends. Another user's lock need not be
    writable: a lock can be held on any open file. Where files cannot be locked, nobody waits.

    Raises:
        OSError: nothing can be made in the folder above.
    """
    handle = _open(folder.with_name(f"{folder.name}.lock"))
    if handle is None:
        yield False
        return
    try:
        yield _locked(handle, folder, is_done, say)
    finally:
        os.close(handle)


def _open(path: Path) -> int | None:
    """Open the file of a lock, or return None if it is another user's and may not even be read."""
    # Made only if missing: in a folder like /tmp the kernel refuses to "create" a file that another user has.
    for flags in (os.O_RDWR, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR, os.O_RDONLY):
        try:
            handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except (FileNotFoundError, FileExistsError):
            continue
        except PermissionError:
            if not path.exists():
                raise
            continue
        share(path)
        return handle
    return None


def _locked(handle: int, folder: Path, is_done: Callable[[], bool], say: Callable[[str], None]) -> bool:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if is_done():
                return False
        except OSError as error:
            say(f"the file system of {folder.parent} cannot lock ({error.strerror}): others may build the same tokens")
            return False
        else:
            # This text is only for people; the file may be another user's.
            with suppress(OSError):
                os.truncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return True
        if not told and time.monotonic() - began > PATIENCE_S:
            owner = os.pread(handle, _OWNER_BYTES, 0).decode(errors="replace").strip()
            say(f"waiting for the tokens that {owner or 'another process'} builds in {folder.parent}")
            told = True
        # The holder of the lock is alive, and has a watchdog of its own.
        current().beat()
        time.sleep(POLL_S)


def partial_folder(folder: Path) -> Path:
    """Make a folder of this process's own beside `folder`, in which to build it.

    Raises:
        OSError: it cannot be made.
    """
    made = folder.with_name(f".{folder.name}.{host()}.{os.getpid()}-{secrets.token_hex(3)}{_PARTIAL}")
    made.mkdir()
    share(made)
    return made


def published(folder: Path, write: Callable[[Path], Made], find: Callable[[], Made | None]) -> Made:
    """Make a folder under a name of its own and rename it into place; another process may have been faster.

    Args:
        folder: the folder, which is not there.
        write: fills an empty folder, and returns what it made.
        find: returns what another process has made of `folder`, or None if that is not whole.

    Raises:
        OSError: it cannot be made.
    """
    partial = partial_folder(folder)
    try:
        made = write(partial)
        share(partial)
        try:
            partial.rename(folder)
        except OSError:
            # A process that does not see our lock was faster: it made the same, as the folder's name says.
            found = find()
            if found is None:
                raise
            return found
        return made
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove partial folders that killed processes left of building `folder`. Only the holder of the lock may call it.

    Machines may share a disk but not its locks: a folder that another machine wrote to lately is left alone.
    """
    for path in folder.parent.glob(f".{folder.name}.*"):
        own = path.name.startswith(f".{folder.name}.{host()}.") or path.name == f".{folder.name}{_PARTIAL}"
        if path.name.endswith(_PARTIAL) and (own or is_left_behind(path)):
            _remove(path)


def is_left_behind(path: Path) -> bool:
    """Return whether another machine wrote a file or folder so long ago that it does so no longer."""
    return time.time() - _last_written(path) > LEFT_BEHIND_S


def set_aside(folder: Path) -> None:
    """Take the name away from a damaged folder, and remove the folder as far as possible.

    Raises:
        DataError: it belongs to another user, and the folder above protects it.
    """
    aside = folder.with_name(f".{folder.name}.{host()}.{os.getpid()}-{secrets.token_hex(3)}{_PARTIAL}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise DataError(
            f"data.cache_dir must not hold damaged tokens, but {folder} of user {owner_of(folder)} is damaged and "
            "cannot be replaced; have it removed, or set data.cache_dir or TRIDENT_CACHE to another folder"
        ) from error
    _remove(aside)


def check_readable(folder: Path) -> None:
    """Check that this user can read everything in a cached folder; a closed one would be taken for a damaged one.

    Raises:
        DataError: a file or folder in it is closed.
    """
    for path in (folder, *(Path(here, name) for here, _, names in os.walk(folder) for name in names)):
        need = os.R_OK | (os.X_OK if path.is_dir() else 0)
        if os.path.exists(path) and not os.access(path, need):
            raise DataError(
                f"data.cache_dir must hold tokens that this user can read, but {path} of user {owner_of(path)} cannot "
                f"be read; set data.cache_dir or TRIDENT_CACHE to another folder",
                hints=[f"or have its owner run `chmod -R go+rX {folder}`"],
            )


def share(path: Path) -> None:
    """Let everyone who may write into the folder around `path` read its files and tidy up its folders.

    In a folder that only its owner may write to, this process's umask decides.
    """
    # Another user's file keeps its mode.
    with suppress(OSError):
        around = path.parent.stat()
        for entry in (path, *path.rglob("*")):
            _open_to(entry, around)


def _open_to(path: Path, around: os.stat_result) -> None:
    mode, found = stat.S_IMODE(around.st_mode), path.lstat()
    group, others = mode & stat.S_IWGRP, mode & stat.S_IWOTH
    wanted = (mode & 0o070 if group else 0) | (mode & 0o007 if others else 0)
    is_lock = path.name.endswith(".lock")
    if not wanted or found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode):
        return
    if not stat.S_ISDIR(found.st_mode):
        wanted &= 0o066 if is_lock else 0o044
    if group and found.st_gid != around.st_gid:
        with suppress(OSError):
            os.chown(path, -1, around.st_gid)
    path.chmod(stat.S_IMODE(found.st_mode) | wanted)


def owner_of(path: Path) -> str:
    """Return the name of the user that a file belongs to, or the number."""
    number = path.lstat().st_uid
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def host() -> str:
    """Return this machine's name, as a part of the names of files."""
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:40]


def _last_written(path: Path) -> float:
    times = [0.0]
    with suppress(OSError):
        times += [entry.lstat().st_mtime for entry in (path, *path.rglob("*"))]
    return max(times)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
