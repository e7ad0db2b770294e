"""A loss curve in characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

_MARK = {True: "•", False: "*"}


def loss_curve(
    points: Sequence[tuple[int, float]], width: int = 60, height: int = 8, unicode: bool = True
) -> list[str]:
    """Return the lines of a chart of (step, loss), at most `width` + 10 characters wide; nothing below two points.

    Each column shows the mean of the steps that fall into it. Nothing either if the losses of a run that diverges lie
    further apart than any number is large.
    """
    if len(points) < 2:
        return []
    columns = min(width, len(points))
    first, last = points[0][0], points[-1][0]
    sums, counts = [0.0] * columns, [0] * columns
    for step, loss in points:
        column = (step - first) * (columns - 1) // max(1, last - first)
        sums[column] += loss
        counts[column] += 1
    means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
    seen = [mean for mean in means if mean is not None]
    low, high = min(seen), max(seen)
    if not math.isfinite(high - low):
        return []
    canvas = [[" "] * columns for _ in range(height)]
    for column, mean in enumerate(means):
        if mean is not None:
            share = (high - mean) / (high - low) if high > low else 0.5
            canvas[round(share * (height - 1))][column] = _MARK[unicode]
    labels = {0: f"{high:8.4g}", height - 1: f"{low:8.4g}"}
    lines = [f"{labels.get(row, ''):>8} |{''.join(cells)}".rstrip() for row, cells in enumerate(canvas)]
    middle = " " * max(1, columns - len(str(first)) - len(str(last)))
    lines.append(f"{'step':>8} |{first}{middle}{last}")
    return lines
