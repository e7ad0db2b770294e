"""Current activity of a process in its run: written by what it does, read by the watchdog when nothing moves any more.

A step has its phases, and so has the time before the first step. No torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

READING = "reading the config"
IMPORTING = "importing the libraries"
JOINING = "waiting for all ranks to join"
CHECKING = "checking the run folder"
PREPARING = "preparing the data"
STARTING_RANKS = "starting the ranks"
TESTING = "testing itself"
BUILDING = "building the engine"
COMPILING = "compiling a kernel"
LOADING = "loading the checkpoint"
BEFORE_THE_LOOP = (
    READING,
    IMPORTING,
    JOINING,
    CHECKING,
    PREPARING,
    STARTING_RANKS,
    TESTING,
    BUILDING,
    COMPILING,
    LOADING,
)
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


class NoteListener(Protocol):
    """Is told each note of a step the moment it is taken; what a note begins ends with the next one."""

    def begins(self, what: str, micro_batch: int | None, half: int) -> None:
        """Take the beginning of a phase, or of an instruction of the pipeline.

        Args:
            what: name of the phase or of the instruction.
            micro_batch: its number, counted from 1; None if it has none.
            half: index among this rank's stages of the one it belongs to; 0 unless a rank holds two.
        """


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
    listener: NoteListener | None = None
    """Listens while it is set."""
    _counts: dict[tuple[str, int], int] = field(default_factory=dict)

    def enter(self, phase: str, micro_batch: int | None = None) -> None:
        """Note the beginning of a phase."""
        self.phase, self.micro_batch, self.instruction = phase, micro_batch, None
        self._counts.clear()
        self.moved_at = time.monotonic()
        if self.listener is not None:
            self.listener.begins(phase, micro_batch, 0)

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

    def execute(self, instruction: str, half: int = 0) -> None:
        """Note an instruction of the pipeline. Its n-th call since the phase began is on micro-batch n.

        Args:
            instruction: DeepSpeed's name of it.
            half: index among this rank's stages of the one it belongs to; each counts by itself.
        """
        number = self._counts[instruction, half] = self._counts.get((instruction, half), 0) + 1
        self.instruction, self.micro_batch = instruction, number
        self.moved_at = time.monotonic()
        if self.listener is not None:
            self.listener.begins(instruction, number, half)


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
