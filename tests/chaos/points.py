"""Where a run can be killed inside a save or a resume: chosen from what its ranks were seen to do."""

from __future__ import annotations

import errno
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.traps import TENSORS, Event, Trap

CHECKPOINTS = "checkpoints/"


@dataclass(frozen=True)
class Point:
    """An event in the course of a run that went on from a checkpoint."""

    event: Event
    size_bytes: int
    """Of the file that is written, when it is whole."""
    before: int
    """How often the event comes before the first save."""
    count: int
    """How often it comes after that."""

    @property
    def kind(self) -> str:
        """Return what it is, whichever rank does it."""
        return f"{self.event.what} {re.sub('rank_[0-9]+', 'rank_R', self.event.name)}"

    @property
    def is_write(self) -> bool:
        """Return whether a part of it can be done."""
        return self.event.what == "write" and self.size_bytes > 0


def points_of(events: Sequence[tuple[Event, int]]) -> list[Point]:
    """Return the distinct events of one rank's record."""
    first_save = next(index for index, (event, _) in enumerate(events) if ".partial" in event.name)
    early = Counter(event for event, _ in events[:first_save])
    late = Counter(event for event, _ in events[first_save:])
    sizes: dict[Event, int] = {}
    for event, size in events:
        if event.what != "write":
            # A file is renamed, synced or read when it is whole.
            written = Event(event.rank, "write", event.name)
            sizes[written] = max(size, sizes.get(written, 0))
    return [Point(event, sizes.get(event, 0), early[event], late[event]) for event in {**early, **late}]


class PointChooser:
    """Chooses points so that all kinds come before one comes again.

    Args:
        points: of all ranks.
        saves: in the run that they were seen in.
        chance: decides among equals.
    """

    def __init__(self, points: Sequence[Point], saves: int, chance: random.Random) -> None:
        self._saves = saves
        self._chance = chance
        self._used: Counter[str] = Counter()
        self._points = points
        mine = [point for point in points if point.event.name.startswith(CHECKPOINTS) or "metrics" in point.event.name]
        self._always = [point for point in mine if point.count >= saves or (point.before and not point.count)]
        self._leftovers = [point for point in mine if 0 < point.count < saves and ".partial" in point.event.name]

    def kill(self, run_dir: Path) -> tuple[Trap, str]:
        """Return where to be killed in a save or a resume, half of them inside a write, and the kind of place."""
        before: dict[str, list[Trap]] = {}
        inside: dict[str, list[Trap]] = {}
        for point in [*self._always, *(point for point in self._leftovers if _is_there(point, run_dir))]:
            trap = Trap(point.event, self._number(point), size_bytes=point.size_bytes)
            before.setdefault(f"before {point.kind}", []).append(trap)
            if point.is_write:
                part = replace(trap, share=self._chance.random())
                inside.setdefault(f"inside {point.kind}", []).append(part)
                if point.event.name.endswith(TENSORS):
                    inside.setdefault(f"inside {point.kind} in place", []).append(replace(part, in_place=True))
        return self._rarest(self._chance.choice([before, inside]))

    def refusal(self) -> tuple[Trap, str]:
        """Return where the operating system refuses, and the kind of place."""
        options: dict[str, list[Trap]] = {}
        for point in self._points:
            if point.event.what not in ("write", "fsync", "mkdir", "rename"):
                continue
            trap = Trap(point.event, self._number(point), size_bytes=point.size_bytes)
            for action in (errno.ENOSPC, errno.EIO):
                options.setdefault(f"{errno.errorcode[action]} {point.kind}", []).append(replace(trap, action=action))
            if point.is_write:
                inside = replace(trap, share=self._chance.random(), action=errno.EFBIG)
                options.setdefault(f"EFBIG {point.kind}", []).append(inside)
        return self._rarest(options)

    def _rarest(self, options: Mapping[str, Sequence[Trap]]) -> tuple[Trap, str]:
        least = min(self._used[kind] for kind in options)
        kind = self._chance.choice([kind for kind in options if self._used[kind] == least])
        self._used[kind] += 1
        return self._chance.choice(options[kind]), kind

    def _number(self, point: Point) -> int:
        """Return at which of its times the event gets the trap: in the first two saves, or while it resumes."""
        if point.count >= self._saves:
            return point.before + 1 + self._chance.randrange(2 * point.count // self._saves)
        return 1 + self._chance.randrange(point.before or 1)


def _is_there(point: Point, run_dir: Path) -> bool:
    """Return whether a save that was killed has left what the event is about."""
    return any(run_dir.glob(point.event.name.replace("step_N", "step_*")))
