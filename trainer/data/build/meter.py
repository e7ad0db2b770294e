"""Progress of a build, as a line for the person who waits. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from trainer.data.build.unit_result import Facts

FIRST_S = 10.0
"""Seconds until the first line: most builds need none."""
EVERY_S = 30.0
_MINUTE_S, _HOUR_S = 60, 3600


class Meter:
    """Counts what is done.

    Args:
        say: is told a line now and then.
        sizes: bytes, as they are stored, of the units that are left; None among them: not known.
        clock: returns a time in seconds.
    """

    def __init__(
        self, say: Callable[[str], None], sizes: Iterable[int | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        known = list(sizes)
        self._left = None if None in known else sum(size for size in known if size is not None)
        self._done = self._tokens = self._text_bytes = 0
        self._clock = clock
        self._within: dict[int, int] = {}
        self._began = clock()
        self._said = self._began - EVERY_S + FIRST_S

    def note(self, facts: Facts) -> None:
        """Note that a unit, or a block, is encoded."""
        self._tokens += facts.tokens
        self._text_bytes += facts.text_bytes

    def note_size(self, number: int, size: int | None) -> None:
        """Note that a unit is finished, with its number and its bytes as they are stored."""
        self._within.pop(number, None)
        self._done += size or 0

    def note_read(self, number: int, size: int | None) -> None:
        """Note how many bytes of a unit are read that is not finished; None: not known."""
        self._within[number] = size or 0

    def tell(self) -> None:
        """Say how far it is, if it is time."""
        now = self._clock()
        if now - self._said < EVERY_S or not self._tokens:
            return
        self._said = now
        self._say(self.line())

    def line(self) -> str:
        """Return how far it is."""
        seconds = max(1e-3, self._clock() - self._began)
        told = f"data    {self._tokens:,} tokens of {self._text_bytes / 1e6:,.0f} MB of text"
        told += f", {self._tokens / seconds:,.0f} tokens/s"
        done = self._done + sum(self._within.values())
        if not self._left or not done:
            return told
        left_s = seconds * max(0, self._left - done) / done
        return f"{told}, {min(1, done / self._left):.0%}, {_duration(left_s)} left"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.0f} min"
    return f"{seconds / _HOUR_S:.1f} h"
