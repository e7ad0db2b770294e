"""Starts contenders, each in processes of its own, and lets them train in turns: only one computes at a time.

Machines are noisy, and a neighbour's load changes by the second. So contenders take turns of a few steps, in an order
that reverses every round, and what is compared are the pairs of turns that lie next to each other. Before anything is
timed, all must show the same losses: same weights, same tokens, same mathematics.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks.case import Case

ROOT = Path(__file__).resolve().parents[1]
READY_S = 600.0
TURN_S = 1800.0


@dataclass(frozen=True)
class Contender:
    """A program that takes part. Its ranks run `benchmarks.contenders.<kind>`."""

    name: str
    kind: str
    case: Case
    options: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    threads: int = 1
    """CPU threads of a rank."""
    site: str | None = None
    """A folder of packages that goes before the environment's own."""
    root: str | None = None
    """Another source tree whose `trainer` is used, to compare revisions."""


class ContenderFailed(Exception):
    """A contender cannot run; the text says why."""

    @property
    def is_out_of_memory(self) -> bool:
        """True if a smaller one might run. A rank without a message was most likely killed for the host's memory."""
        text = str(self).lower()
        return "out of memory" in text or "outofmemory" in text or "died" in text


@dataclass(frozen=True)
class Turn:
    """A contender's turn."""

    seconds: float
    """Time of the slowest rank."""
    losses: tuple[float, ...]
    """One a step, mean over ranks."""
    extras: Mapping[str, Any]
    """Further values of rank 0."""


class Running:
    """A contender under way. `close` ends it."""

    def __init__(self, contender: Contender, logs: Path) -> None:
        self.contender = contender
        self.facts: Mapping[str, Any] = {}
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._requests: list[TextIO] = []
        self._answers: list[TextIO] = []
        started = time.perf_counter()
        port = _free_port()
        try:
            for rank in range(contender.ranks):
                self._start(rank, port)
            self.facts = self._gather("ready", READY_S)[0]
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - started
        """Time from the command to the first step."""

    def _start(self, rank: int, port: int) -> None:
        contender = self.contender
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        spec = {
            "case": contender.case.to_dict(),
            "kind": contender.kind,
            "options": dict(contender.options),
            "requests": theirs_in,
            "answers": theirs_out,
        }
        log = self._log(rank)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", json.dumps(spec)],
                env=_environment(contender, rank, port),
                cwd=self._logs,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs_in, theirs_out),
                start_new_session=True,
            )
        self._processes.append(process)
        os.close(theirs_in)
        os.close(theirs_out)
        self._requests.append(os.fdopen(ours_out, "w"))
        self._answers.append(os.fdopen(ours_in))

    def turn(self, steps: int) -> Turn:
        """Train some steps.

        Raises:
            ContenderFailed: a rank failed, died or did not answer in time.
        """
        for request in self._requests:
            request.write(json.dumps({"turn": steps}) + "\n")
            request.flush()
        answers = self._gather("turn", TURN_S)
        losses = [sum(values) / len(values) for values in zip(*(answer["losses"] for answer in answers), strict=True)]
        extras = {key: value for key, value in answers[0].items() if key not in ("seconds", "losses")}
        return Turn(max(answer["seconds"] for answer in answers), tuple(losses), extras)

    def _gather(self, key: str, timeout_s: float) -> list[Mapping[str, Any]]:
        """Return every rank's next answer, in rank order."""
        found: dict[int, Mapping[str, Any]] = {}
        end = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            for rank, stream in enumerate(self._answers):
                selector.register(stream, selectors.EVENT_READ, rank)
            while len(found) < len(self._answers):
                ready = selector.select(max(0.0, end - time.monotonic()))
                if not ready:
                    raise ContenderFailed(f"did not answer within {timeout_s:g} s")
                for entry, _ in ready:
                    line = self._answers[entry.data].readline()
                    if not line:
                        raise ContenderFailed(f"rank {entry.data} died: {self._log_tail(entry.data)}")
                    answer: dict[str, Any] = json.loads(line)
                    if "failed" in answer:
                        raise ContenderFailed(str(answer["failed"]))
                    found[entry.data] = answer[key]
                    selector.unregister(self._answers[entry.data])
        return [found[rank] for rank in range(len(self._answers))]

    def _log(self, rank: int) -> Path:
        return self._logs / f"{re.sub(r'[^A-Za-z0-9]+', '_', self.contender.name)[:80]}_rank{rank}.log"

    def _log_tail(self, rank: int) -> str:
        lines = [line for line in self._log(rank).read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "no output"

    def close(self) -> None:
        """End all ranks."""
        for stream in (*self._requests, *self._answers):
            try:
                stream.close()
            except OSError:
                continue
        for process in self._processes:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(contender: Contender, rank: int, port: int) -> dict[str, str]:
    """Return the environment that a launcher would make."""
    path = [contender.root, str(ROOT), contender.site, os.environ.get("PYTHONPATH")]
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": contender.ranks, "LOCAL_WORLD_SIZE": contender.ranks}
    return {
        **os.environ,
        **{key: str(value) for key, value in facts.items()},
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(contender.threads),
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "DS_ACCELERATOR": "cuda" if contender.case.device == "cuda" else "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }


@dataclass
class Record:
    """Results of a contender after the rounds."""

    contender: Contender
    reason: str | None = None
    """The reason why it has no figures."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    start_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    loss_error: float = 0.0
    """Largest relative difference, before the timing, from the losses of the first contender with as large a batch."""
    turns: list[Turn] = field(default_factory=list)

    def rates(self, steps: int) -> list[float]:
        """Return tokens/s of every timed turn."""
        return [steps * self.contender.case.tokens_per_step / turn.seconds for turn in self.turns]


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences of the loss from the first contender's."""

    first: float
    """Tolerance at step 1: same weights, same tokens."""
    later: float
    """Tolerance at every other step before the timing: same optimizer."""


FP32 = Tolerance(first=1e-5, later=2e-3)
HALF = Tolerance(first=5e-3, later=2e-2)


def compete(
    contenders: Sequence[Contender],
    logs: Path,
    *,
    rounds: int,
    steps: int,
    warmup: int,
    tolerance: Tolerance,
    say: Any,
) -> list[Record]:
    """Let contenders train in turns; return one record each, in the same order.

    Args:
        contenders: the first is what the others' losses are held against.
        logs: folder for what their processes print.
        rounds: turns of each.
        steps: optimizer steps in a turn.
        warmup: steps before the first timed turn (at least 1), whose losses must agree.
        tolerance: how far.
        say: told what happens.
    """
    records = [Record(contender) for contender in contenders]
    running: dict[int, Running] = {}
    try:
        for index, record in enumerate(records):
            _enter(index, record, running, logs, say)
        for index, record in enumerate(records):
            if index in running:
                _warm_up(index, record, records, running, warmup, tolerance, say)
        for number in range(rounds):
            order = sorted(running) if number % 2 == 0 else sorted(running, reverse=True)
            for index in order:
                _take_turn(index, records[index], running, steps, say)
            say(f"round {number + 1} of {rounds}: " + _round_line(records, running))
    finally:
        for one in running.values():
            one.close()
    return records


def _enter(index: int, record: Record, running: dict[int, Running], logs: Path, say: Any) -> None:
    try:
        running[index] = Running(record.contender, logs)
    except ContenderFailed as error:
        record.reason = str(error)
        say(f"skipped {record.contender.name}: {error}")
        return
    record.facts, record.start_seconds = running[index].facts, running[index].start_seconds
    say(f"ready   {record.contender.name} ({record.start_seconds:.1f} s)")


def _drop(index: int, record: Record, running: dict[int, Running], reason: str, say: Any) -> None:
    record.reason = reason
    running.pop(index).close()
    say(f"dropped {record.contender.name}: {reason}")


def _warm_up(
    index: int,
    record: Record,
    records: Sequence[Record],
    running: dict[int, Running],
    warmup: int,
    tolerance: Tolerance,
    say: Any,
) -> None:
    try:
        turns = [running[index].turn(1), *([running[index].turn(warmup - 1)] if warmup > 1 else [])]
    except ContenderFailed as error:
        _drop(index, record, running, str(error), say)
        return
    record.losses = [loss for turn in turns for loss in turn.losses]
    tokens = record.contender.case.tokens_per_step
    alike = (other.losses for other in records if other.losses and other.contender.case.tokens_per_step == tokens)
    reference = next(alike)
    reason = judge(record, reference, tolerance)
    if reason is not None:
        _drop(index, record, running, reason, say)


def judge(record: Record, reference: Sequence[float], tolerance: Tolerance) -> str | None:
    """Hold a contender's first losses against others; return why it must not be timed, if so. Sets `loss_error`."""
    errors = [abs(a - b) / abs(b) for a, b in zip(record.losses, reference, strict=False)]
    record.loss_error = max(errors, key=lambda error: (error != error, error))
    # No comparison with a number that is none is true.
    if errors[0] <= tolerance.first and all(error <= tolerance.later for error in errors):
        return None
    return f"its losses differ: step 1 by {errors[0]:.1e}, worst {record.loss_error:.1e} (relative)"


def _take_turn(index: int, record: Record, running: dict[int, Running], steps: int, say: Any) -> None:
    try:
        record.turns.append(running[index].turn(steps))
    except ContenderFailed as error:
        _drop(index, record, running, str(error), say)


def train_alone(contender: Contender, logs: Path, *turns: int) -> list[Turn]:
    """Start a contender, give it turns of so many steps each, and end it.

    Raises:
        ContenderFailed: it cannot be built or trained.
    """
    running = Running(contender, logs)
    try:
        return [running.turn(steps) for steps in turns]
    finally:
        running.close()


def alone(
    contenders: Sequence[Contender], logs: Path, *, warmup: int, steps: int, tolerance: Tolerance, say: Any
) -> list[Record]:
    """Let each contender train with no other process beside it: for memory, not for comparing speed.

    Args:
        contenders: the first one's losses are what those with as large a batch are held against.
        logs: folder for what their processes print.
        warmup: steps before the timed turn, whose losses must agree.
        steps: optimizer steps in the one timed turn.
        tolerance: how far the losses may differ.
        say: told what happens.
    """
    records = [Record(contender) for contender in contenders]
    for record in records:
        running: dict[int, Running] = {}
        try:
            _enter(0, record, running, logs, say)
            if running:
                _warm_up(0, record, records, running, warmup, tolerance, say)
            if running:
                _take_turn(0, record, running, steps, say)
        finally:
            for one in running.values():
                one.close()
    return records


def _round_line(records: Sequence[Record], running: Mapping[int, Running]) -> str:
    return ", ".join(f"{records[i].contender.name} {records[i].turns[-1].seconds:.2f} s" for i in sorted(running))
