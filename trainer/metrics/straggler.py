"""The watch for stragglers: it names the rank that all others wait for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LEAST_WAIT_SHARE = 0.1
"""Share of a step that waiting for data must take to be worth a warning."""


@dataclass(frozen=True)
class RankTimes:
    """Measurements of one rank since the report before."""

    own_ms: float
    """Time of a forward pass, without waits for other ranks; NaN if it is not known."""
    data_wait_ms: float
    """Time that a step waited for data."""


@dataclass(frozen=True)
class Slowest:
    """The rank that is slowest compared with those that do the same work."""

    rank: int
    ratio: float
    """Its time over the median of the others of its stage; if it is alone there, over its own shortest so far."""


@dataclass(frozen=True)
class Straggler:
    """A rank that was slow in several reports in a row."""

    rank: int
    stage: int
    host: str
    ratio: float
    what: str
    """computing | reading data"""

    def __str__(self) -> str:
        """Return rank, place and excess for people."""
        return (
            f"{self.rank} (stage {self.stage}) on {self.host}, whose {self.what} takes {self.ratio:.1f} times as long"
        )


class StragglerWatch:
    """Looks at the times of all ranks, report by report. Local to the reporting rank; no collective.

    Args:
        stages: stage of every rank, in order of ranks.
        hosts: machine of every rank, in order of ranks.
        factor: multiple of the others' time from which on a rank is named; 0 for never.
        reports: number of reports in a row after which a rank is named.

    Ranks are compared with the median of the other ranks of their stage, which compute the same. A rank that is alone
    in its stage is compared with its own shortest time: it can only be seen to become slower.
    """

    def __init__(self, stages: Sequence[int], hosts: Sequence[str], factor: float, reports: int = 3) -> None:
        self._stages = tuple(stages)
        self._hosts = tuple(hosts)
        self._factor = factor
        self._reports = reports
        self._shortest: dict[int, float] = {}
        self._slow_for: dict[tuple[int, str], int] = {}

    def look(self, times: Sequence[RankTimes], step_ms: float) -> tuple[Slowest | None, list[Straggler]]:
        """Return the slowest rank in computing, and those that have become stragglers with this report.

        Args:
            times: times of every rank, in order of ranks.
            step_ms: mean wall time of a step.
        """
        own = [entry.own_ms for entry in times]
        ratios = [self._ratio(rank, own) for rank in range(len(times))]
        found = [self._named(rank, ratio, "computing") for rank, ratio in enumerate(ratios)]
        waits = [entry.data_wait_ms for entry in times]
        for rank, wait in enumerate(waits):
            others = [other for index, other in enumerate(waits) if index != rank]
            matters = others and wait >= LEAST_WAIT_SHARE * step_ms
            ratio = wait / max(median(others), 1e-3) if matters else math.nan
            found.append(self._named(rank, ratio, "reading data"))
        known = [(ratio, rank) for rank, ratio in enumerate(ratios) if not math.isnan(ratio)]
        slowest = Slowest(max(known)[1], max(known)[0]) if known else None
        return slowest, [straggler for straggler in found if straggler is not None]

    def _ratio(self, rank: int, own: Sequence[float]) -> float:
        mine = own[rank]
        if math.isnan(mine):
            return math.nan
        others = [
            value
            for index, value in enumerate(own)
            if index != rank and self._stages[index] == self._stages[rank] and not math.isnan(value)
        ]
        if not others:
            self._shortest[rank] = min(mine, self._shortest.get(rank, math.inf))
        reference = median(others) if others else self._shortest[rank]
        return mine / max(reference, 1e-6)

    def _named(self, rank: int, ratio: float, what: str) -> Straggler | None:
        """Count a slow report; return the straggler in the one that makes it one."""
        if self._factor <= 0 or not ratio >= self._factor:
            self._slow_for[rank, what] = 0
            return None
        self._slow_for[rank, what] = self._slow_for.get((rank, what), 0) + 1
        if self._slow_for[rank, what] != self._reports:
            return None
        return Straggler(rank, self._stages[rank], self._hosts[rank], ratio, what)
