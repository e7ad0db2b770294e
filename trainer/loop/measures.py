"""Numbers that hooks measure now and then, on their way into the next report."""

from __future__ import annotations


class Measures:
    """Named numbers since the last report; a later number replaces an earlier one of the same name. Local to a rank.

    Names are those of the metrics row: `room/what_unit`.
    """

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def note(self, name: str, value: float) -> None:
        """Keep a number for the next report."""
        self._values[name] = value

    def take(self) -> dict[str, float]:
        """Return the numbers that were noted since the last call."""
        taken, self._values = self._values, {}
        return taken
