"""A command, its time, and the memory of it and of all processes that it starts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_EVERY_S = 0.05


@dataclass(frozen=True)
class Measured:
    """What a command took."""

    seconds: float
    peak_bytes: int
    """Memory of its own of all processes together at most, without pages of files; 0 if it was not looked at."""
    output: str
    """Its output."""


def run(words: Sequence[str], *, looks_at_memory: bool = False) -> Measured:
    """Run a command to its end.

    Args:
        words: the command.
        looks_at_memory: look at its memory 20 times a second, which takes a little time of its own.

    Raises:
        RuntimeError: it fails; the last line of its output says why.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        meter = _Meter(process.pid)
        if looks_at_memory:
            meter.start()
        try:
            code = process.wait()
        finally:
            meter.stop()
        seconds = time.perf_counter() - begun
        output.seek(0)
        told = output.read()
    if code:
        last = [line for line in told.splitlines() if line.strip()][-1:] or ["no output"]
        raise RuntimeError(f"{' '.join(words[:5])} ... must end well, but its exit code is {code}: {last[0]}")
    return Measured(seconds, meter.peak_bytes, told)


class _Meter(threading.Thread):
    """Looks at the memory of a process and its children until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._pid = pid
        self._ended = threading.Event()

    def run(self) -> None:
        """Look, again and again."""
        while not self._ended.wait(_EVERY_S):
            with suppress(psutil.Error):
                root = psutil.Process(self._pid)
                pids = [self._pid, *(child.pid for child in root.children(recursive=True))]
                self.peak_bytes = max(self.peak_bytes, sum(map(own_bytes, pids)))

    def stop(self) -> None:
        """End the looking."""
        self._ended.set()
        if self.is_alive():
            self.join()


def own_bytes(pid: int) -> int:
    """Return the memory of a process without pages of files; what several processes share counts by its share.

    0 if the process has gone.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1]) * 1024
    return 0


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))
