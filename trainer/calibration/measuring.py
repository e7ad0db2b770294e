"""Starting the ranks that measure, and hearing what they found. No torch: the ranks are processes of their own."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TextIO

from trainer.calibration.measurements import Measurements, joined
from trainer.calibration.trials import PASSES, Trial
from trainer.config.schema import DeviceKind
from trainer.errors import TridentError
from trainer.launcher.start import free_port, python_environment

SILENT_S = 300.0
"""Seconds without a word from the ranks after which they are given up; the first offload compiles a kernel."""


class MeasuringFailed(TridentError):
    """The ranks that measure ended without a result."""


def measured_by_ranks(
    trials: Sequence[Trial], device: DeviceKind, rounds: int, budget_s: float, told: Callable[[str], None]
) -> Measurements:
    """Start as many ranks as the trials have, let them measure, and return what they found.

    Args:
        trials: what is trained, all with as many ranks.
        device: kind of device.
        rounds: timed steps of each trial.
        budget_s: seconds for one kernel.
        told: told what is measured next.

    Raises:
        MeasuringFailed: a rank failed or hangs.
    """
    ranks = trials[0].ranks
    reading, writing = os.pipe()
    spec: dict[str, object] = {
        "device": device.value,
        "rounds": rounds,
        "budget_s": budget_s,
        "trials": [[trial.name, trial.ranks, trial.words] for trial in trials],
        "answers": writing,
        # Each part meets at a port of its own: the one before may still be leaving.
        "ports": [free_port() for _ in range(1 + PASSES * len(trials))],
    }
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="calibration_") as name, os.fdopen(reading) as answers:
        logs = Path(name)
        try:
            for rank in range(ranks):
                with (logs / f"{rank}.log").open("wb") as log:
                    processes.append(_start(spec, rank, ranks, log))
        finally:
            os.close(writing)
        try:
            return _heard(answers, told)
        except _Ended as ended:
            raise MeasuringFailed(
                f"the ranks that measure must end with a result, but {ended}: {_last(logs)}"
            ) from None
        finally:
            for process in processes:
                _end(process)


class _Ended(Exception):
    """Says how it ended without a result."""


def _start(spec: dict[str, object], rank: int, ranks: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": 0}
    environment = {**python_environment(), **{key: str(value) for key, value in facts.items()}}
    environment["MASTER_ADDR"] = "127.0.0.1"
    writing = spec["answers"]
    assert isinstance(writing, int)
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.calibration.measuring_rank", json.dumps(spec)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(writing,) if rank == 0 else (),
        start_new_session=True,
    )


def _heard(answers: TextIO, told: Callable[[str], None]) -> Measurements:
    parts: list[Measurements] = []
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        while True:
            if not selector.select(SILENT_S):
                raise _Ended(f"rank 0 was silent for {SILENT_S:g} s")
            line = answers.readline()
            if not line:
                raise _Ended("rank 0 ended")
            answer = json.loads(line)
            if "ended" in answer:
                return joined(parts)
            if "measured" in answer:
                parts.append(Measurements.from_dict(answer["measured"]))
            else:
                told(answer["part"])


def _last(logs: Path) -> str:
    """Return the last line of the rank that seems to have failed first."""
    files = sorted(logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines = [line for path in files for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
