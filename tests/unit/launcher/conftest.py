from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_ENTER = """
import sys, time
from pathlib import Path
from trainer.launcher.roster import Roster
Roster(Path(sys.argv[1])).enter(int(sys.argv[2]))
print("entered", flush=True)
time.sleep(60)
"""

StartRank = Callable[[int], "subprocess.Popen[str]"]


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not so within {timeout_s:g} s"
        time.sleep(0.02)


@pytest.fixture
def start_rank(tmp_path: Path) -> Iterator[StartRank]:
    """Starts a process that enters the roster of `tmp_path` and sleeps."""
    started: list[subprocess.Popen[str]] = []

    def start(rank: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _ENTER, str(tmp_path), str(rank)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "entered\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


@pytest.fixture
def lose_rank(start_rank: StartRank) -> Callable[[int], None]:
    """Lets a rank enter the roster and kills it."""

    def lose(rank: int) -> None:
        process = start_rank(rank)
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    return lose
