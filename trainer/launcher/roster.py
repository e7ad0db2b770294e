"""Who is alive: every rank leaves its process id in the run folder while it works.

A rank that ends in a way it controls takes its entry back; one that is killed cannot. So an entry whose process is gone
names a lost rank, under every launcher, without a collective. Entries of other hosts are not judged.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil


class Roster:
    """The entries of one run.

    Args:
        folder: where entries live; the run's `logs` folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.pid"

    def clear(self) -> None:
        """Remove the entries of an earlier attempt. Call before any rank enters."""
        for path in self._folder.glob("rank_*.pid"):
            path.unlink(missing_ok=True)

    def enter(self, rank: int) -> None:
        """Write this process's entry."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entry = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        temporary = self._path(rank).with_suffix(".tmp")
        temporary.write_text(json.dumps(entry))
        temporary.replace(self._path(rank))

    def leave(self, rank: int) -> None:
        """Take the entry back."""
        self._path(rank).unlink(missing_ok=True)

    def _entries(self) -> dict[int, dict[str, object]]:
        found: dict[int, dict[str, object]] = {}
        for path in self._folder.glob("rank_*.pid"):
            try:
                found[int(path.stem.removeprefix("rank_"))] = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
        return found

    def present(self) -> dict[int, int]:
        """Return rank -> process id of the ranks of this host that are alive."""
        return {rank: int(str(e["pid"])) for rank, e in self._entries().items() if _is_here(e) and _is_alive(e)}

    def lost(self) -> list[int]:
        """Return the ranks of this host whose process is gone without having left."""
        return sorted(rank for rank, e in self._entries().items() if _is_here(e) and not _is_alive(e))


def _is_here(entry: dict[str, object]) -> bool:
    return entry.get("host") == socket.gethostname()


def _is_alive(entry: dict[str, object]) -> bool:
    try:
        process = psutil.Process(int(str(entry["pid"])))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - float(str(entry["started"]))) < 1.0
    except psutil.NoSuchProcess:
        return False


def watch_peers(roster: Roster, on_loss: Callable[[list[int]], None], grace_s: float) -> threading.Event:
    """Start a daemon thread that calls `on_loss` when a peer has been gone for `grace_s` seconds.

    A collective that waits for a dead peer may never return; the thread ends the process then. Set the returned event
    to stop watching.
    """
    stop = threading.Event()

    def watch() -> None:
        missing_since: float | None = None
        while not stop.wait(1.0):
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
