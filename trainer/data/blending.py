"""The source of each place of a blend: never a sample more or less than its share, as pure arithmetic. No torch.

After n places a source with share w has v(n) = n w samples due. Its j-th sample may stand at the places behind which
more than j - 1 are due, and must stand at none later than the first behind which j are due. Of the samples that may
stand at a place, the one that must stand earliest does. So each source has always had floor(v) or ceil(v) samples: by a
counting argument (Hall's theorem for intervals) no sample is ever too late, and at each place there is one that may
stand there, also where a phase begins with parts of samples due from the phase before. Source: R. Tijdeman, "The
chairman assignment problem", Discrete Mathematics 32 (1980) 323-330.

With whole parts the assignment is periodic, so a table of a period answers for any place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache, reduce
from heapq import heappop, heappush
from math import gcd, inf, lcm

import numpy as np
import numpy.typing as npt

from trainer.data.stream_plan import Phase

MOST_PARTS = 1_000_000
"""Largest number of parts into which weights divide a stream: a table of that many places is made and kept."""
Indices = npt.NDArray[np.int64]


def whole_parts(weights: Sequence[float]) -> tuple[int, ...]:
    """Return whole parts in the ratio of weights: exactly where `MOST_PARTS` parts are enough, otherwise rounded to it.

    Weights are read as they are written: 0.1 is one of ten parts. One that is not 0 gets at least a part.

    Args:
        weights: finite, not negative, not all 0.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    scale = lcm(*(one.denominator for one in exact))
    parts = [int(one * scale) for one in exact]
    common = reduce(gcd, parts)
    parts = [one // common for one in parts]
    total = sum(parts)
    if total <= MOST_PARTS:
        return tuple(parts)
    return whole_parts([max(1, round(one * (MOST_PARTS - len(parts)) / total)) if one else 0 for one in parts])


class _Table:
    """The sources of one phase, by the number of places since it began.

    Args:
        parts: whole parts, one a source.
        due: what each source has due at the beginning, each more than -1 and less than 1, together 0.
    """

    def __init__(self, parts: tuple[int, ...], due: tuple[Fraction, ...]) -> None:
        self.parts = np.array(parts, dtype=np.int64)
        self._period = sum(parts)
        owners: list[int] = []
        counts = [0] * len(parts)
        # Whatever is due at the beginning is due again a period later, a sample more or less: at some time as before.
        seen: dict[tuple[int, ...], int] = {}
        assignment = _Assignment(parts, due)
        while (state := tuple(c - len(seen) * p for c, p in zip(counts, parts, strict=True))) not in seen:
            seen[state] = len(seen)
            for _ in range(self._period):
                owner = assignment.next()
                counts[owner] += 1
                owners.append(owner)
        self._lead = seen[state] * self._period
        self._cycle = len(owners) - self._lead
        self._per_cycle = self.parts * (self._cycle // self._period)
        self._owners = np.array(owners, dtype=np.int64)
        self._ordinals = np.empty_like(self._owners)
        for source in range(len(parts)):
            here = np.flatnonzero(self._owners == source)
            self._ordinals[here] = np.arange(len(here))

    def at(self, places: Indices) -> tuple[Indices, Indices]:
        """Return source and number of earlier samples of it, since the phase began, for each place [n]."""
        cycles = np.maximum(places - self._lead, 0) // self._cycle
        inside = places - cycles * self._cycle
        sources = self._owners[inside]
        return sources, self._ordinals[inside] + cycles * self._per_cycle[sources]

    def counts(self, places: int) -> Indices:
        """Return how many of the first `places` places each source has, [k]."""
        cycles = max(places - self._lead, 0) // self._cycle
        inside = np.bincount(self._owners[: places - cycles * self._cycle], minlength=len(self.parts))
        return np.asarray(inside + cycles * self._per_cycle, dtype=np.int64)


class _Assignment:
    """Gives the source of one place after another."""

    def __init__(self, parts: tuple[int, ...], due: tuple[Fraction, ...]) -> None:
        self._parts, self._period = parts, sum(parts)
        self._due = due
        self._place = 0
        self._samples = [0] * len(parts)
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)
        self._ready: list[tuple[float, int]] = []
        for source in range(len(parts)):
            self._release(source)

    def next(self) -> int:
        """Return the source of the next place."""
        self._place += 1
        for source in self._waiting.pop(self._place, ()):
            heappush(self._ready, (self._latest(source), source))
        _, source = heappop(self._ready)
        self._samples[source] += 1
        self._release(source)
        return source

    def _behind(self, source: int, due: int) -> tuple[int, int]:
        """Return quotient and remainder of the number of places behind which `due` samples of a source are due."""
        debt = self._due[source]
        return divmod((due * debt.denominator - debt.numerator) * self._period, self._parts[source] * debt.denominator)

    def _release(self, source: int) -> None:
        """Let the next sample of a source wait for the first place at which it may stand."""
        had = self._samples[source]
        if self._parts[source]:
            first = self._behind(source, had)[0] + 1
            self._waiting[max(first, self._place + 1)].append(source)
        elif self._due[source] > had:
            # A part of a sample is due from the phase before: it may stand anywhere, and need not.
            self._waiting[self._place + 1].append(source)

    def _latest(self, source: int) -> float:
        """Return the last place at which the next sample of a source may stand."""
        if not self._parts[source]:
            return inf
        whole, more = self._behind(source, self._samples[source] + 1)
        return whole + (more > 0)


@lru_cache(maxsize=64)
def _table(parts: tuple[int, ...], due: tuple[Fraction, ...]) -> _Table:
    return _Table(parts, due)


class Blending:
    """The source of each place of a segment, and how many of its samples come before. Places count from the segment.

    After any number of places each source has had its share, summed over the phases, rounded up or down.

    Args:
        first: place of the stream at which the segment begins.
        phases: its phases, the first at `first`.
    """

    def __init__(self, first: int, phases: Sequence[Phase]) -> None:
        self._firsts = np.array([phase.first - first for phase in phases], dtype=np.int64)
        count = len(phases[0].parts)
        due, before = (Fraction(0),) * count, np.zeros(count, dtype=np.int64)
        self._tables: list[_Table] = []
        self._before: list[Indices] = []
        for index, phase in enumerate(phases):
            table = _table(phase.parts, due)
            self._tables.append(table)
            self._before.append(before)
            if index + 1 < len(phases):
                length = phases[index + 1].first - phase.first
                had = table.counts(length)
                before = before + had
                total = sum(phase.parts)
                due = tuple(
                    debt + Fraction(length * part, total) - int(one)
                    for debt, part, one in zip(due, phase.parts, had, strict=True)
                )

    def at(self, places: Indices) -> tuple[Indices, Indices]:
        """Return source and number of earlier samples of it, for each place [n]."""
        sources, ordinals = np.empty_like(places), np.empty_like(places)
        of_phase = np.searchsorted(self._firsts, places, side="right") - 1
        for phase in np.unique(of_phase):
            here = of_phase == phase
            found, earlier = self._tables[phase].at(places[here] - self._firsts[phase])
            sources[here], ordinals[here] = found, earlier + self._before[phase][found]
        return sources, ordinals

    def counts(self, places: int) -> Indices:
        """Return how many of the first `places` places each source has, [k]."""
        phase = int(np.searchsorted(self._firsts, places, side="right")) - 1
        return self._before[phase] + self._tables[phase].counts(places - int(self._firsts[phase]))
