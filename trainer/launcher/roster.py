"""The roster of living ranks: every rank keeps its process id in the run folder while it works.

A rank that ends in a way that it controls removes its entry; one that is killed cannot. So an entry whose process is
gone names a lost rank, under every launcher, without a collective. Entries of other hosts are not judged.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from trainer.errors import StorageError
from trainer.files import write_atomically
from trainer.interruption import ASKED, GRACE_S

POLL_S = 1.0
SAME_PROCESS_S = 5.0
"""Seconds by which two readings of one process's start may differ, if the clock is corrected between them; a process
that reuses the id is far younger."""


@dataclass(frozen=True)
class _Entry:
    """One rank's process."""

    host: str
    pid: int
    started: float
    """Start of the process, in seconds since the epoch."""

    @classmethod
    def of_this_process(cls) -> _Entry:
        """Return the entry for this process."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    @property
    def is_here(self) -> bool:
        """True if the process is, or was, on this host."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """True if the process runs."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return bool(abs(process.create_time() - self.started) < SAME_PROCESS_S)
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True


class Roster:
    """The entries of one run.

    Args:
        folder: folder of the entries: the run's `logs` folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failure = folder / "failure"

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.pid"

    def clear(self) -> None:
        """Remove the entries and the failure of an earlier attempt. Call it before any rank enters."""
        for path in self._folder.glob("rank_*.pid"):
            path.unlink(missing_ok=True)
        self._failure.unlink(missing_ok=True)

    def enter(self, rank: int) -> None:
        """Write this process's entry.

        Raises:
            StorageError: it cannot be written.
        """
        write_atomically(self._path(rank), json.dumps(asdict(_Entry.of_this_process())))

    def leave(self, rank: int) -> None:
        """Remove the entry."""
        # A disk that has failed must not hide the failure that this rank ends with.
        with suppress(OSError):
            self._path(rank).unlink(missing_ok=True)

    def _entries(self) -> dict[int, _Entry]:
        found: dict[int, _Entry] = {}
        for path in self._folder.glob("rank_*.pid"):
            try:
                rank, raw = int(path.stem.removeprefix("rank_")), json.loads(path.read_text())
                entry = _Entry(str(raw["host"]), int(raw["pid"]), float(raw["started"]))
            # It is not an entry of ours, or it was removed meanwhile.
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if entry.pid > 0:
                found[rank] = entry
        return found

    def _entries_here(self) -> dict[int, _Entry]:
        return {rank: entry for rank, entry in self._entries().items() if entry.is_here}

    def left_entries(self) -> list[int]:
        """Return the ranks of all hosts that have an entry: the lost ones, once no rank of the run is alive."""
        return sorted(self._entries())

    def has_other_hosts(self) -> bool:
        """Return whether a rank of another host has an entry."""
        return any(not entry.is_here for entry in self._entries().values())

    def elsewhere(self) -> dict[int, str]:
        """Return rank -> host of the entries of other hosts."""
        return {rank: entry.host for rank, entry in sorted(self._entries().items()) if not entry.is_here}

    def present(self) -> dict[int, int]:
        """Return rank -> process id of the ranks of this host that are alive."""
        return {rank: entry.pid for rank, entry in self._entries_here().items() if entry.is_alive}

    def lost(self) -> list[int]:
        """Return the ranks of this host whose process is gone although they have not left."""
        gone = {rank: entry for rank, entry in self._entries_here().items() if not entry.is_alive}
        # Read again: a rank may have left, and then ended, after its entry was read.
        still = self._entries_here() if gone else {}
        return sorted(rank for rank, entry in gone.items() if still.get(rank) == entry)

    def claim_failure(self, exit_code: int) -> bool:
        """Return whether this rank is the first to fail, which is the one that reports the cause.

        Raises:
            OSError: the folder cannot be written.
        """
        try:
            mark = os.open(self._failure, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            # On a full disk the file can still be created; `told_failure` knows what an empty one means.
            with suppress(OSError):
                os.write(mark, str(exit_code).encode())
        finally:
            os.close(mark)
        return True

    def told_failure(self) -> int | None:
        """Return the exit code of the failure that a rank reported, or None."""
        try:
            return int(self._failure.read_text() or StorageError.exit_code)
        except (OSError, ValueError):
            return None


def watch_peers(
    roster: Roster,
    on_loss: Callable[[list[int]], None],
    grace_s: float,
    on_asked: Callable[[int], None] = lambda code: None,
) -> threading.Event:
    """Start a daemon thread that calls `on_loss` when a peer has been gone for `grace_s` seconds.

    It calls `on_asked` with a peer's exit code when the peer was asked to end before there was anything to save. A
    collective that waits for such a peer may never return; the thread ends the process then. Set the returned event to
    stop watching.
    """
    stop = threading.Event()

    def watch() -> None:
        missing_since: float | None = None
        while not stop.wait(POLL_S):
            told = roster.told_failure()
            # This rank may have been asked as well, and then ends by itself.
            if told in ASKED and not stop.wait(GRACE_S):
                on_asked(told)
                return
            lost = roster.lost()
            if not lost:
                missing_since = None
                continue
            missing_since = missing_since or time.monotonic()
            if time.monotonic() - missing_since >= grace_s:
                on_loss(lost)
                return

    threading.Thread(target=watch, name="peer-watch", daemon=True).start()
    return stop
