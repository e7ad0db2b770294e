"""Constants from times: least squares of relative errors. No torch.

Times vary by factors of thousands, so errors are relative: a constant that is right for large messages alone would be
useless for small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_SWEEPS = 20_000
_ROUNDS = 60
_STEP = 1e-3
"""Change of a logarithm by which slopes are measured."""


def nonnegative_fit(rows: Sequence[Sequence[float]], times: Sequence[float]) -> list[float]:
    """Return the coefficients, none below 0, whose sums come relatively closest to the times.

    Coordinate descent on the normal equations, which are convex: with few coefficients it needs no library.

    Args:
        rows: for each time its factors, one a coefficient.
        times: seconds, greater than 0.
    """
    count = len(rows[0])
    scaled = [[value / time for value in row] for row, time in zip(rows, times, strict=True)]
    # Columns of one size: otherwise coefficients of bytes and of calls converge at very different speeds.
    sizes = [math.sqrt(sum(row[i] ** 2 for row in scaled)) or 1.0 for i in range(count)]
    scaled = [[value / size for value, size in zip(row, sizes, strict=True)] for row in scaled]
    normal = [[sum(row[i] * row[j] for row in scaled) for j in range(count)] for i in range(count)]
    right = [sum(row[i] for row in scaled) for i in range(count)]
    found = [0.0] * count
    for _ in range(_SWEEPS):
        largest = 0.0
        for i in range(count):
            if normal[i][i] == 0.0:
                continue
            slope = right[i] - sum(normal[i][j] * found[j] for j in range(count))
            value = max(0.0, found[i] + slope / normal[i][i])
            largest = max(largest, abs(value - found[i]))
            found[i] = value
        if largest < 1e-12:
            break
    return [value / size for value, size in zip(found, sizes, strict=True)]


@dataclass(frozen=True)
class Free:
    """A constant that a fit may change."""

    start: float
    """Value from which it is sought, greater than 0."""
    spread: float
    """Natural logarithm of the factor by which it may be off, as one standard deviation."""


def adjusted(
    free: Mapping[str, Free], predict: Callable[[Mapping[str, float]], Sequence[float]], times: Sequence[float]
) -> dict[str, float]:
    """Return the constants under which predictions come closest to measured times, in logarithms.

    Levenberg-Marquardt on the logarithms of constants and times, with slopes by differences. Each constant is held near
    its start as strongly as its spread says, so that one which the times do not determine stays there.

    Args:
        free: constants by name.
        predict: times under given constants, one for each measured time.
        times: measured seconds.
    """
    names = list(free)
    starts = [math.log(free[name].start) for name in names]

    def misses(at: Sequence[float]) -> list[float]:
        predicted = predict({name: math.exp(value) for name, value in zip(names, at, strict=True)})
        errors = [
            (math.log(guess) - math.log(time)) / _TIME_SPREAD for guess, time in zip(predicted, times, strict=True)
        ]
        held = [(value - start) / free[name].spread for name, value, start in zip(names, at, starts, strict=True)]
        return errors + held

    at, damping = list(starts), 1e-2
    now = misses(at)
    for _ in range(_ROUNDS):
        moved = [misses([v + _STEP * (i == j) for j, v in enumerate(at)]) for i in range(len(names))]
        slopes = [[(after - before) / _STEP for after, before in zip(one, now, strict=True)] for one in moved]
        better = None
        while better is None and damping < 1e8:
            step = _damped_step(slopes, now, damping)
            tried = [value + change for value, change in zip(at, step, strict=True)]
            then = misses(tried)
            if _square(then) < _square(now):
                better = (tried, then)
            else:
                damping *= 4.0
        if better is None:
            break
        gain = _square(now) - _square(better[1])
        at, now = better
        damping = max(damping / 4.0, 1e-9)
        if gain < 1e-9 * (1.0 + _square(now)):
            break
    return {name: math.exp(value) for name, value in zip(names, at, strict=True)}


_TIME_SPREAD = 0.05
"""Relative error that measured times and the model may have, as one standard deviation."""


def _square(values: Sequence[float]) -> float:
    return sum(value * value for value in values)


def _damped_step(slopes: Sequence[Sequence[float]], misses: Sequence[float], damping: float) -> list[float]:
    """Solve (J'J + damping diag(J'J)) step = -J' misses."""
    count = len(slopes)
    matrix = [
        [sum(a * b for a, b in zip(slopes[i], slopes[j], strict=True)) for j in range(count)] for i in range(count)
    ]
    right = [-sum(a * b for a, b in zip(slopes[i], misses, strict=True)) for i in range(count)]
    for i in range(count):
        matrix[i][i] *= 1.0 + damping
    return solved(matrix, right)


def solved(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Return x of matrix x = right, by elimination with the largest pivot.

    Raises:
        ZeroDivisionError: the matrix is singular.
    """
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    count = len(rows)
    for i in range(count):
        best = max(range(i, count), key=lambda j: abs(rows[j][i]))
        rows[i], rows[best] = rows[best], rows[i]
        for j in range(i + 1, count):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [value - factor * above for value, above in zip(rows[j], rows[i], strict=True)]
    found = [0.0] * count
    for i in reversed(range(count)):
        found[i] = (rows[i][count] - sum(rows[i][j] * found[j] for j in range(i + 1, count))) / rows[i][i]
    return found
