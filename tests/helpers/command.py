"""Run `trident` as a user does: in a process of its own, with a time-out, and look at what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "TRIDENT_TEST_MARK"
"""In the environment of everything a test starts, so that what is left behind can be found."""
LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """Return the `error:` lines."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


class Running:
    """A command under way. Leaving the `with` block kills whatever is left of it."""

    def __init__(self, command: Sequence[str], cwd: Path, environment: Mapping[str, str] | None = None) -> None:
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER_NAMES}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**kept, MARK: self.mark, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.left_behind():
            process.kill()
        self.process.kill()
        self.process.wait()

    def end(self, timeout_s: float) -> Ended:
        """Wait for the command.

        Raises:
            AssertionError: it did not end in time; what it printed is in the message.
        """
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            for process in self.left_behind():
                process.kill()
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"did not end within {timeout_s:g} s\n{out[-4000:]}\n{err[-4000:]}") from None
        return Ended(self.process.returncode, out, err, time.monotonic() - self.started)

    def left_behind(self) -> list[psutil.Process]:
        """Return the living processes that the command started, itself not counted."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found if process.pid != self.process.pid]


def trident(*arguments: str) -> list[str]:
    """Return the command line of `trident <arguments>`."""
    return [sys.executable, "-m", "trainer", *arguments]


def run(
    command: Sequence[str], cwd: Path, timeout_s: float = 120, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a command to its end and check that it leaves no process behind."""
    with Running(command, cwd, environment) as running:
        ended = running.end(timeout_s)
        assert running.left_behind() == []
    return ended


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it did not become true in time.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.1)


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl; none if there is no such file yet."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def rank_pid(run_dir: Path, rank: int) -> int:
    """Return the process id of a running rank."""
    return int(json.loads((run_dir / "logs" / f"rank_{rank}.pid").read_text())["pid"])


def kill_rank(run_dir: Path, rank: int) -> None:
    """End a rank without a word."""
    os.kill(rank_pid(run_dir, rank), signal.SIGKILL)
