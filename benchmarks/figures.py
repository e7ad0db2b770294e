"""Medians and paired ratios. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A sample in three numbers."""

    median: float
    least: float
    most: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Return median, least and most of at least one value."""
    return Spread(median(values), min(values), max(values), len(values))


def paired(seconds: Sequence[float], base_seconds: Sequence[float], work: float = 1.0) -> Spread:
    """Return how many times as fast a contender is as the base, turn against neighbouring turn.

    Args:
        seconds: of the contender's turns.
        base_seconds: of the base's turns in the same rounds.
        work: tokens of the contender's turn / tokens of the base's.
    """
    return spread([work * base / mine for mine, base in zip(seconds, base_seconds, strict=True)])
