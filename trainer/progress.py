"""Where a rank is in its run: written by what it does, read by the watchdog when nothing moves any more. No torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

PHASES = ("start", "data", "forward", "backward", "pipeline", "optimizer", "evaluate", "hooks", "end")
"""In the order of a step. `pipeline` goes through forward, backward and the exchange between stages by instructions."""


@dataclass
class Progress:
    """The last thing that this rank began. A note is a few attributes, so that taking it costs nothing.

    One thread writes. Another may read while a note is taken: it may see half of it, but not for long.
    """

    step: int = 0
    """The step under way, 0 before the first."""
    phase: str = "start"
    """One of PHASES."""
    micro_batch: int | None = None
    """Counted from 1, in the step or the evaluation."""
    instruction: str | None = None
    """Of the pipeline's schedule: DeepSpeed's name of it, e.g. RecvActivation."""
    moved_at: float = field(default_factory=time.monotonic)
    """When the note was taken, on the monotonic clock."""
    _counts: dict[str, int] = field(default_factory=dict)

    def enter(self, phase: str, micro_batch: int | None = None) -> None:
        """Note the beginning of a phase."""
        self.phase, self.micro_batch, self.instruction = phase, micro_batch, None
        self._counts.clear()
        self.moved_at = time.monotonic()

    def begin_step(self, step: int) -> None:
        """Note that `step` begins, with the wait for its data."""
        self.step = step
        self.enter("data")

    def execute(self, instruction: str) -> None:
        """Note an instruction of the pipeline. Its n-th call since the phase began is on micro-batch n."""
        number = self._counts[instruction] = self._counts.get(instruction, 0) + 1
        self.instruction, self.micro_batch = instruction, number
        self.moved_at = time.monotonic()
