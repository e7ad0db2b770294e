"""Arithmetic on stretches of time: each moment is given to one owner, so that nothing counts twice. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Interval = tuple[int, int]
"""(begin, end) in ns, end not included."""


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same time as intervals in order that do not touch; empty ones are dropped."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def overlap(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    """Return the time that is in both. Both must be `merged`, and so is the result."""
    found: list[Interval] = []
    i = j = 0
    while i < len(first) and j < len(second):
        begin, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if begin < end:
            found.append((begin, end))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    """Return the time of `first` that is not in `second`. Both must be `merged`, and so is the result."""
    if not first:
        return []
    gaps, at = [], first[0][0]
    for begin, end in second:
        gaps.append((at, begin))
        at = max(at, end)
    gaps.append((at, max(at, first[-1][1])))
    return overlap(first, merged(gaps))


def length(intervals: Iterable[Interval]) -> int:
    """Return the sum of the lengths."""
    return sum(end - begin for begin, end in intervals)


def divide(window: Sequence[Interval], layers: Iterable[tuple[str, Sequence[Interval]]], rest: str) -> dict[str, int]:
    """Divide a stretch of time: each moment goes to the first layer that has it, or to `rest`.

    Args:
        window: the stretch that is divided; `merged`.
        layers: (name, intervals in any order); names may come more than once.
        rest: name of the time that no layer has.

    Returns:
        Lengths by name. Their sum is exactly the length of `window`.
    """
    parts: dict[str, int] = {}
    left = list(window)
    for name, intervals in layers:
        theirs = overlap(left, merged(intervals))
        if theirs:
            parts[name] = parts.get(name, 0) + length(theirs)
            left = without(left, theirs)
    parts[rest] = parts.get(rest, 0) + length(left)
    return parts
