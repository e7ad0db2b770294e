"""One run a folder: a lock of the operating system, and the wait for what an earlier start left running. No torch.

The run holds the lock through one process: the parent of self-started ranks, otherwise rank 0. Ranks may outlive that
process: when their command is killed, they end a little later. So a start waits before it says that a folder is in use.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from trainer.errors import ConfigError, PeerLostError, TridentError
from trainer.files import storage_faults
from trainer.launcher.roster import Roster
from trainer.log import say, warn
from trainer.run_paths import LOCK

"""File of a run's folder; the process that trains there holds a lock on it."""
_OWNER_BYTES = 200
_POLL_S = 0.1


class FolderClaim:
    """This process's right to train in a folder.

    Args:
        run_dir: the folder.
        logs: its `logs` folder, with the roster of ranks.
    """

    def __init__(self, run_dir: Path, logs: Path) -> None:
        self._run_dir = run_dir
        self._roster = Roster(logs)
        self._file: IO[bytes] | None = None
        self._can_lock = True

    def wait(self, grace_s: float) -> None:
        """Wait until nobody trains in the folder, but no longer than `grace_s` seconds. Reads only.

        Raises:
            ConfigError: a run trains there.
            PeerLostError: ranks of an earlier start, whose command is gone, do not end.
        """
        self._until_free(grace_s, self._others)

    def take(self, grace_s: float) -> None:
        """Keep other runs out as long as this object lives; waits as `wait` does.

        The operating system releases the lock when the process ends, however it ends.

        Raises:
            ConfigError: as `wait`.
            PeerLostError: as `wait`.
            StorageError: the folder cannot be written.
        """
        with storage_faults(self._run_dir):
            self._run_dir.mkdir(parents=True, exist_ok=True)
            # Not inherited by processes that this one starts: they must not keep the lock.
            self._file = (self._run_dir / LOCK).open("a+b", buffering=0)
        self._until_free(grace_s, lambda: self._try_lock() or self._leftover())
        # This text is only for people: the lock is what counts, and a full disk is reported where it matters.
        with suppress(OSError):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _until_free(self, grace_s: float, look: Callable[[], TridentError | None]) -> None:
        end = time.monotonic() + grace_s
        is_told = False
        while (found := look()) is not None:
            if time.monotonic() >= end:
                raise found
            if not is_told:
                say(f"waiting up to {grace_s:g} s (launch.grace_s) for it to end: {str(found).partition(', but ')[2]}")
                is_told = True
            time.sleep(_POLL_S)

    def _others(self) -> TridentError | None:
        try:
            with (self._run_dir / LOCK).open("rb") as file:
                return self._lock(file, fcntl.LOCK_SH) or self._leftover()
        except OSError:
            # There is none yet, or it may not be read.
            return self._leftover()

    def _try_lock(self) -> TridentError | None:
        assert self._file is not None
        return self._lock(self._file, fcntl.LOCK_EX) if self._can_lock else None

    def _lock(self, file: IO[bytes], kind: int) -> TridentError | None:
        """Lock a file; return the error that names the process which holds the lock instead."""
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(_OWNER_BYTES).decode(errors="replace").strip()
            return ConfigError(
                f"run_dir must not be in use, but a run trains in {self._run_dir} now "
                f"({owner or 'it has just started'})",
                hints=["wait for that run, stop it, or set run_dir to another folder"],
            )
        except OSError as error:
            self._can_lock = False
            if kind == fcntl.LOCK_EX:
                warn(
                    f"the file system of {self._run_dir} cannot lock ({error.strerror}): do not start two runs there "
                    "at once"
                )
        return None

    def _leftover(self) -> TridentError | None:
        """Return the error for ranks of this machine that run although nobody holds the lock."""
        ranks = {rank: pid for rank, pid in self._roster.present().items() if pid != os.getpid()}
        if not ranks:
            return None
        rank, pid = min(ranks.items())
        if not self._can_lock:
            return ConfigError(
                f"run_dir must not be in use, but rank {rank} of a run trains in {self._run_dir} now (process {pid})",
                hints=["wait for that run, stop it, or set run_dir to another folder"],
            )
        return PeerLostError(
            f"ranks of an earlier start must have ended, but rank {rank} still runs in {self._run_dir} (process {pid}) "
            "without the command that started it",
            hints=[f"end it: kill -9 {' '.join(map(str, ranks.values()))}", "or give it longer: launch.grace_s"],
        )
