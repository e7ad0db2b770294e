"""Current activity of a process in its run: written by what it does, read by the watchdog when nothing moves any more.

A step has its phases, and so has the time before the first step. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

READING = "reading the config"
IMPORTING = "importing the libraries"
JOINING = "waiting for all ranks to join"
CHECKING = "checking the run folder"
PREPARING = "preparing the data"
STARTING_RANKS = "starting the ranks"
BUILDING = "building the engine"
COMPILING = "compiling a kernel"
LOADING = "loading the checkpoint"
BEFORE_THE_LOOP = (READING, IMPORTING, JOINING, CHECKING, PREPARING, STARTING_RANKS, BUILDING, COMPILING, LOADING)
"""Phases before the loop, in the order of a start."""
BUSY = frozenset((IMPORTING, PREPARING, COMPILING, LOADING))
"""Phases that may take any time, as long as the process, or one that it started, computes."""
PHASES = (
    *BEFORE_THE_LOOP,
    *("start", "data", "forward", "backward", "pipeline", "optimizer", "evaluate", "hooks", "end"),
)
"""All phases, in order. `pipeline` goes through forward, backward and the exchange between stages by instructions."""

READER = "reader"
"""Name of the thread that reads data before they are needed; a rank that waits for data is where this one is."""


@dataclass
class Progress:
    """The latest activity that this rank began. A note is a few attributes, so that taking it costs nothing.

    One thread writes. Another may read while a note is taken: what it reads may be half old, but only for a moment.
    """

    step: int = 0
    """The step under way; 0 before the first."""
    phase: str = READING
    """One of PHASES."""
    micro_batch: int | None = None
    """Number of the micro-batch in the step or the evaluation, counted from 1."""
    instruction: str | None = None
    """DeepSpeed's name of a pipeline instruction, e.g. RecvActivation; in another phase, the thing it works on."""
    moved_at: float = field(default_factory=time.monotonic)
    """Time of the note, on the monotonic clock."""
    _counts: dict[str, int] = field(default_factory=dict)

    def enter(self, phase: str, micro_batch: int | None = None) -> None:
        """Note the beginning of a phase."""
        self.phase, self.micro_batch, self.instruction = phase, micro_batch, None
        self._counts.clear()
        self.moved_at = time.monotonic()

    def beat(self) -> None:
        """Note that the phase goes on: it has done a part of its work."""
        self.moved_at = time.monotonic()

    @contextmanager
    def during(self, phase: str, on: str | None = None) -> Iterator[None]:
        """Let another phase be under way while inside, on what `on` names; afterwards the one before goes on."""
        before = self.phase, self.micro_batch, self.instruction
        self.phase, self.micro_batch, self.instruction = phase, None, on
        self.beat()
        try:
            yield
        finally:
            self.phase, self.micro_batch, self.instruction = before
            self.beat()

    def begin_step(self, step: int) -> None:
        """Note that `step` begins, with the wait for its data."""
        self.step = step
        self.enter("data")

    def execute(self, instruction: str) -> None:
        """Note an instruction of the pipeline. Its n-th call since the phase began is on micro-batch n."""
        number = self._counts[instruction] = self._counts.get(instruction, 0) + 1
        self.instruction, self.micro_batch = instruction, number
        self.moved_at = time.monotonic()


class _Current:
    progress = Progress()


def current() -> Progress:
    """Return the activity of this process, as far as it has noted it."""
    return _Current.progress


def follow(progress: Progress) -> None:
    """Make `progress` the record of this process's activity, beginning with the current one."""
    progress.phase, progress.instruction = _Current.progress.phase, _Current.progress.instruction
    progress.beat()
    _Current.progress = progress
