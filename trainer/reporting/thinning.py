"""A long series as the few points that are drawn. The lowest and the highest value of each stretch are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Values = NDArray[np.float64]
DRAWN_POINTS = 1600
"""Points of a curve that a wide screen can tell apart."""


@dataclass(frozen=True)
class Thinned:
    """The points of a series that are drawn."""

    steps: list[int]
    values: list[float]
    mean_steps: list[int] | None = None
    """Last step of each stretch; None: nothing was left out."""
    means: list[float] | None = None
    """Mean of each stretch, for the smoothed line."""
    stretch: int = 1
    """Rows that two points stand for."""
    not_finite: int = 0
    """Values that are not finite, and not drawn."""


def thin(steps: Steps, values: Values, points: int = DRAWN_POINTS) -> Thinned:
    """Return a series with at most `points` points, and two more for its ends.

    Args:
        steps: ascending.
        values: one for each step.
        points: largest number of points, at least 4.
    """
    finite = np.isfinite(values)
    lost = int(len(values) - finite.sum())
    steps, values = steps[finite], values[finite]
    if len(values) <= points:
        return Thinned(steps.tolist(), rounded(values), not_finite=lost)
    stretch = -(-2 * len(values) // points)
    rows = -(-len(values) // stretch)
    # The last value fills up the last stretch: it changes neither the lowest nor the highest value.
    padded = np.pad(values, (0, rows * stretch - len(values)), mode="edge").reshape(rows, stretch)
    starts = np.arange(rows) * stretch
    places = np.concatenate(([0, len(values) - 1], starts + padded.argmin(1), starts + padded.argmax(1)))
    places = np.unique(np.minimum(places, len(values) - 1))
    sums = np.add.reduceat(values, starts)
    ends = np.minimum(starts + stretch, len(values))
    return Thinned(
        steps[places].tolist(),
        rounded(values[places]),
        steps[ends - 1].tolist(),
        rounded(sums / (ends - starts)),
        stretch,
        lost,
    )


def evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` indices below `count`, evenly spaced, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return sorted({round(place * (count - 1) / (wanted - 1)) for place in range(wanted)})


def rounded(values: Values) -> list[float]:
    """Return values with six significant digits, which no screen can show better."""
    return [float(f"{value:.6g}") for value in values.tolist()]
