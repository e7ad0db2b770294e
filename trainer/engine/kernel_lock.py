"""A lock for compiling a kernel that a killed owner does not keep. No torch.

torch and DeepSpeed compile C++ kernels when they are first used, one process at a time: the process that creates a file
named `lock` beside the kernel compiles, and the others wait until the file is gone. A killed compilation leaves the
file, and everybody waits for ever. `KernelLock` takes the place of torch's class: it creates the same file, so that
other programs respect it, but writes its owner into the file and touches it while the owner lives. The lock of an owner
that is gone is taken over. A lock with an unknown owner is waited for as long as something happens in its folder, and
then refused.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

import psutil

from trainer.errors import ConfigError
from trainer.log import say
from trainer.machine import this_machine
from trainer.progress import COMPILING, current

BEAT_S = 5.0
"""Seconds between an owner's touches of its lock."""
STALE_S = 60.0
"""Seconds without a touch after which an owner is gone."""
QUIET_S = 300.0
"""Longest time in seconds that a compiler needs for one file, during which nothing in the folder changes."""
FIRST_WORD_S = 5.0
WORD_S = 30.0
_POLL_S = 0.2
_SAME_PROCESS_S = 5.0
_LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "bcachefs"))
"""File systems that no other machine writes to."""
_GUARD = ".lock.guard"
_F_SETSIG = 10
"""Linux's number; Python's fcntl does not name it."""


class Owner(Enum):
    """State of the owner of a lock."""

    alive = "alive"
    gone = "gone"
    unknown = "unknown"


@dataclass(frozen=True)
class _Record:
    """The owner of a lock, as the lock file records it."""

    host: str
    machine: str
    """Identifies the machine or container, within which a process id identifies a process."""
    pid: int
    started: float
    """Start of the process, in seconds since the epoch."""

    @classmethod
    def of_this_process(cls) -> _Record:
        """Return the record that this process writes into its locks."""
        return cls(socket.gethostname(), this_machine(), os.getpid(), psutil.Process().create_time())

    @classmethod
    def of(cls, lock: Path) -> _Record | None:
        """Read a lock; None if it belongs to another program, or its owner has not written yet."""
        try:
            raw = json.loads(lock.read_text(encoding="utf-8"))
            return cls(str(raw["host"]), str(raw["machine"]), int(raw["pid"]), float(raw["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def is_alive(self) -> bool:
        """True if the process, on this machine, runs."""
        try:
            process = psutil.Process(self.pid)
            is_it = abs(process.create_time() - self.started) < _SAME_PROCESS_S
            return is_it and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


def owner_of(lock: Path) -> Owner:
    """Return the state of a lock's owner. A lock that does not exist has none: its owner is gone."""
    record = _Record.of(lock)
    if record is not None:
        if record.machine == this_machine():
            return Owner.alive if record.is_alive else Owner.gone
        return Owner.alive if _age_s(lock, [lock]) < STALE_S else Owner.gone
    if not lock.exists():
        return Owner.gone
    is_open = _is_open_here(lock)
    if is_open:
        return Owner.alive
    # torch keeps its lock open as long as it holds it.
    return Owner.gone if is_open is False and _file_system(lock.parent) in _LOCAL else Owner.unknown


def quiet_s(lock: Path) -> float:
    """Return for how long nothing has changed in a lock's folder, by the clock of its file system."""
    with suppress(OSError):
        # The guard and the file that measures the time are left out, and so is the folder itself, which they change.
        return _age_s(lock, [entry for entry in lock.parent.iterdir() if not entry.name.startswith(".lock.")])
    return 0.0


class KernelLock:
    """Stands in for `torch.utils.file_baton.FileBaton`, and is called in the same way.

    Args:
        lock_file_path: `lock` in the folder of a kernel.
        wait_seconds: not used; torch passes it.
        warn_after_seconds: not used.
    """

    def __init__(self, lock_file_path: str, wait_seconds: float = 0.1, warn_after_seconds: float | None = None) -> None:
        self._lock = Path(lock_file_path)
        self._kernel = self._lock.parent.name
        self._released = threading.Event()
        self._phase = ExitStack()
        self._record = _Record.of_this_process()

    def try_acquire(self) -> bool:
        """Return True when this process is to compile, and False when another has done so meanwhile.

        Raises:
            ConfigError: the folder cannot be written, or the lock's owner cannot be found out.
        """
        if self._is_compiled() and not os.access(self._lock.parent, os.W_OK):
            # A kernel that came with an image.
            return False
        with ExitStack() as phase:
            phase.enter_context(current().during(COMPILING, self._kernel))
            waiting = _Waiting(self._lock, self._kernel)
            has_waited = False
            while True:
                if has_waited and not self._lock.exists() and self._is_compiled():
                    return False
                if self._create():
                    # Held until `release`.
                    self._phase = phase.pop_all()
                    return True
                has_waited = not self._take_over()
                if has_waited:
                    waiting.go_on()

    def wait(self) -> None:
        """Do nothing: `try_acquire` has waited."""

    def release(self) -> None:
        """Remove the lock."""
        self._released.set()
        self._phase.close()
        if _Record.of(self._lock) == self._record:
            self._lock.unlink(missing_ok=True)

    def _is_compiled(self) -> bool:
        return any(self._lock.parent.glob("*.so"))

    def _create(self) -> bool:
        try:
            descriptor = os.open(self._lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and self._is_compiled():
                return False
            raise ConfigError(
                f"the folder of compiled kernels must be one that can be written, but {self._lock.parent}: "
                f"{error.strerror}",
                hints=["set TORCH_EXTENSIONS_DIR to another folder"],
            ) from error
        with suppress(OSError), os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(self._record), file)
        if not self._is_compiled():
            say(f"compiling the kernel {self._kernel} in {self._lock.parent}: about a minute, once")
        threading.Thread(target=self._beat, name="kernel-lock", daemon=True).start()
        return True

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with suppress(OSError):
                os.utime(self._lock)

    def _take_over(self) -> bool:
        """Remove the lock if its owner is gone; return whether it is."""
        if owner_of(self._lock) is not Owner.gone:
            return False
        with _guarded(self._lock):
            # Another process may have taken it over meanwhile, and that owner lives.
            if owner_of(self._lock) is not Owner.gone:
                return False
            try:
                self._lock.unlink(missing_ok=True)
            except OSError as error:
                raise _refused(self._lock, f"its owner is gone, but it cannot be deleted ({error.strerror})") from error
        return True


class _Waiting:
    """Waits for the owner of a lock, and says so."""

    def __init__(self, lock: Path, kernel: str) -> None:
        self._lock, self._kernel = lock, kernel
        self._since = time.monotonic()
        self._next_word = self._since + FIRST_WORD_S

    def go_on(self) -> None:
        """Wait a little.

        Raises:
            ConfigError: the lock's owner cannot be found out, and nothing happens in its folder.
        """
        silent_s = quiet_s(self._lock)
        if silent_s < QUIET_S:
            current().beat()
        elif owner_of(self._lock) is Owner.unknown:
            raise _refused(
                self._lock,
                f"it is there since {silent_s / 60:.0f} minutes, without a change in its folder and without a word "
                "whose it is: a compilation was killed",
            )
        now = time.monotonic()
        if now >= self._next_word:
            record = _Record.of(self._lock)
            who = f"process {record.pid} on {record.host}" if record else "another program"
            since_s = now - self._since
            say(f"waiting for {who} to compile the kernel {self._kernel}, since {since_s:.0f} s ({self._lock})")
            self._next_word = now + WORD_S
        time.sleep(_POLL_S)


def _refused(lock: Path, why: str) -> ConfigError:
    return ConfigError(
        f"the folder of compiled kernels must not be locked, but {lock} is: {why}",
        hints=[f"if nothing compiles there, delete {lock}", "or set TORCH_EXTENSIONS_DIR to another folder"],
    )


@contextmanager
def _guarded(lock: Path) -> Iterator[None]:
    """Let one process at a time look at a lock and remove it, if the file system can lock."""
    descriptor = -1
    with suppress(OSError):
        descriptor = os.open(lock.with_name(_GUARD), os.O_RDONLY | os.O_CREAT, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _age_s(lock: Path, files: list[Path]) -> float:
    """Return how long ago the newest of some files was changed, by their file system's clock if it can be had."""
    newest = 0.0
    for file in files:
        with suppress(OSError):
            newest = max(newest, file.stat().st_mtime)
    if newest == 0.0:
        return 0.0
    try:
        with tempfile.NamedTemporaryFile(dir=lock.parent, prefix=".lock.") as probe:
            os.write(probe.fileno(), b"x")
            return os.fstat(probe.fileno()).st_mtime - newest
    except OSError:
        return time.time() - newest


def _is_open_here(path: Path) -> bool | None:
    """Return whether another process of this machine, of any user or container, has a file open; None if unknown."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        # A write lease is given to the only one that has the file open. Who opens it at this very moment makes the
        # kernel send a signal here, which must be one that does nothing.
        fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    finally:
        os.close(descriptor)


def _file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on."""
    folder = folder.resolve()
    partitions = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((partitions[path] for path in (folder, *folder.parents) if path in partitions), "")
