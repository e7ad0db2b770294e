"""Progress of a run, and the time that the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.metrics.figures import duration


class Pace:
    """Steps done and time left, from the pace since this attempt's first step, which is slower than others.

    Args:
        steps: steps of the whole run.
        clock: returns seconds.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.steps = steps
        self._clock = clock
        self._first_step = 1
        self.step = 0
        """Last step that ended."""
        self._first_ended = self._last_ended = 0.0

    def start(self, first_step: int) -> None:
        """Begin before `first_step`."""
        self._first_step = first_step
        self.step = first_step - 1

    def advance(self, step: int) -> None:
        """Note that `step` has ended."""
        self.step, self._last_ended = step, self._clock()
        if step == self._first_step:
            self._first_ended = self._last_ended

    def left(self) -> str:
        """Return the time from the last step to the end, `-` while it is not known."""
        done = self.step - self._first_step
        if done < 1:
            return "-"
        return duration((self._last_ended - self._first_ended) * (self.steps - self.step) / done)
