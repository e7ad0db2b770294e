"""Differences between two runs: config, environment, results, speed and events, as values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np

from trainer.config.keys import flatten
from trainer.config.places import BY_CONTENT
from trainer.config.schema import TridentConfig
from trainer.config.written import plain
from trainer.records.happened import Event
from trainer.records.metric_columns import Metrics, Steps, Values
from trainer.records.run_record import RunRecord
from trainer.run_folder import may_change

TOLERANCE = 0.01
"""Relative difference up to which two results are taken for alike: a number of bf16 is rounded by up to 0.4 %."""
ABSENT = "(no such key)"
"""Value of a key that the other run has, and this version does not know."""
LEDGER = "data/sample_ledger"
_COSTS = ("perf/", "time/", "memory/", "pipeline/", "system/", "plan/", "checkpoint/", "profile/")
"""Beginnings of the names of what a step costs, which is never the same twice."""
SHOWN_COSTS = (
    *("perf/tokens_per_second", "perf/mfu", "time/step_ms", "time/data_wait_ms", "pipeline/bubble_fraction"),
    "memory/peak_allocated_gib",
)
_WARM_UP_ROWS = 2
"""Rows whose time and speed say little: kernels are compiled and caches filled."""
_PLACES = ("run_dir", "name", "checkpoint.resume", "data.cache_dir")
_HOW = ("layout.", "zero.", "precision.", "batch.", "optimizer.", "train.steps", "train.epochs")
"""Beginnings of keys that a run may change on its way, though they decide how results are rounded, or the rate."""
_TURNS = ("start", "restart", "rewind", "skip", "spike", "save_failed")


@dataclass(frozen=True)
class Setting:
    """A key, or the version of a package, whose values differ."""

    key: str
    a: object
    b: object
    decides: bool = True
    """True if results may depend on it; False if it only says where, how and how often."""


@dataclass(frozen=True)
class Parting:
    """One metric of both runs."""

    name: str
    common: int
    """Number of steps at which both have a value."""
    first: int | None
    """First of them at which a bit differs; None: none does."""
    beyond: int | None
    """First of them at which the values differ by more than the tolerance; None: they never do."""
    a: float
    """Value of the first run at `beyond`, or else at `first`, or else the last one; NaN: the step has none."""
    b: float
    last: int
    """Last step at which both have a value; 0: none."""
    last_a: float
    """Value of the first run there."""
    last_b: float
    largest: float
    """Largest relative difference up to the last common step; infinite where only one has a value."""


@dataclass(frozen=True)
class Cost:
    """One cost of a step of each run, as a median over its rows."""

    name: str
    a: float
    b: float

    @property
    def change(self) -> float:
        """Relative change from the first run to the second one; NaN if there is none to be said."""
        return self.b / self.a - 1 if self.a else float("nan")


def differing_settings(a: RunRecord, b: RunRecord) -> list[Setting]:
    """Return the keys of the config that differ, those first that decide what is computed."""
    found = []
    for key in dict.fromkeys((*a.config, *b.config)):
        sides = [_setting(record, key) for record in (a, b)]
        if sides[0] != sides[1]:
            decides = key.startswith(_HOW) or (key not in _PLACES and (not may_change(key) or key in BY_CONTENT))
            found.append(Setting(key, sides[0], sides[1], decides))
    return sorted(found, key=lambda setting: not setting.decides)


def _setting(record: RunRecord, key: str) -> object:
    # A version that did not have a key did what is the default since.
    value = plain(record.config[key] if key in record.config else _defaults().get(key, ABSENT))
    # 1e-3 is a text for YAML.
    with suppress(ValueError):
        if isinstance(value, str) and math.isfinite(number := float(value)):
            return number
    return value


@cache
def _defaults() -> dict[str, object]:
    return flatten(TridentConfig())


def differing_environment(a: RunRecord, b: RunRecord) -> list[Setting]:
    """Return the versions that differ, the commit of Trident's source, and the layout that the plans say."""
    sides = [{**record.environment, **_of_plan(record)} for record in (a, b)]
    if not all(record.environment for record in (a, b)):
        sides = [_of_plan(record) for record in (a, b)]
    names = dict.fromkeys((*sides[0], *sides[1]))
    return [
        Setting(name, sides[0].get(name, "not there"), sides[1].get(name, "not there"))
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    ]


def _of_plan(record: RunRecord) -> dict[str, str]:
    layout = (record.plan or {}).get("layout")
    if not isinstance(layout, Mapping):
        return {}
    return {str(name).replace("_", " "): str(value) for name, value in layout.items()}


def partings(a: Metrics, b: Metrics, tolerance: float) -> list[Parting]:
    """Return every result that both runs have, those first that part first."""
    names = [name for name in a.names if name in b.names and not name.startswith(_COSTS)]
    found = [_parting(name, *_side_by_side(name, a, b), tolerance) for name in names]
    return sorted((one for one in found if one.common), key=lambda one: (_late(one.beyond), _late(one.first), one.name))


def _late(step: int | None) -> float:
    return np.inf if step is None else step


def _side_by_side(name: str, a: Metrics, b: Metrics) -> tuple[Steps, Values, Values]:
    """Return the steps that both have, and both values of each. A step that was skipped has no loss: NaN."""
    if name.startswith("train/"):
        steps = np.intersect1d(a.steps, b.steps)
        return steps, _filled(a, name, steps), _filled(b, name, steps)
    (mine, values), (theirs, others) = a.series(name), b.series(name)
    steps, places, other_places = np.intersect1d(mine, theirs, return_indices=True)
    return steps, values[places], others[other_places]


def _filled(metrics: Metrics, name: str, steps: Steps) -> Values:
    mine, values = metrics.series(name)
    filled = np.full(len(steps), np.nan)
    _, places, others = np.intersect1d(steps, mine, return_indices=True)
    filled[places] = values[others]
    return filled


def _parting(name: str, steps: Steps, a: Values, b: Values, tolerance: float) -> Parting:
    if not len(steps):
        return Parting(name, 0, None, None, np.nan, np.nan, 0, np.nan, np.nan, 0.0)
    differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        relative = np.where(differ, np.abs(a - b) / np.maximum(np.abs(a), np.abs(b)), 0.0)
    relative = np.where(np.isnan(relative), np.inf, relative)
    # A hash is another one, however near its number is.
    far = differ if name == LEDGER else relative > tolerance
    first = int(np.argmax(differ)) if differ.any() else None
    beyond = int(np.argmax(far)) if far.any() else None
    at = beyond if beyond is not None else first if first is not None else len(steps) - 1
    return Parting(
        name=name,
        common=len(steps),
        first=None if first is None else int(steps[first]),
        beyond=None if beyond is None else int(steps[beyond]),
        a=float(a[at]),
        b=float(b[at]),
        last=int(steps[-1]),
        last_a=float(a[-1]),
        last_b=float(b[-1]),
        largest=float(relative.max()),
    )


def costs(a: Metrics, b: Metrics) -> list[Cost]:
    """Return what steps cost, of the names that both runs have."""
    found = []
    for name in SHOWN_COSTS:
        sides = [_median(metrics, name) for metrics in (a, b)]
        if sides[0] is not None and sides[1] is not None:
            found.append(Cost(name, sides[0], sides[1]))
    return found


def _median(metrics: Metrics, name: str) -> float | None:
    values = metrics.series(name)[1]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    if name.startswith("memory/"):
        return float(values.max())
    return float(np.median(values[_WARM_UP_ROWS:] if len(values) > _WARM_UP_ROWS else values))


def differing_events(a: Sequence[Event], b: Sequence[Event]) -> list[tuple[str, Event]]:
    """Return "A" or "B" with each turn that only this run took: starts, rewinds, skipped batches."""
    kept = [[event for event in events if event.kind in _TURNS] for events in (a, b)]
    marks = [[(event.kind, event.step) for event in events] for events in kept]
    found = list(_only("A", kept[0], marks[1])) + list(_only("B", kept[1], marks[0]))
    return sorted(found, key=lambda one: one[1].step or 0)


def _only(side: str, events: Sequence[Event], others: Sequence[tuple[str, int | None]]) -> Iterator[tuple[str, Event]]:
    left = list(others)
    for event in events:
        mark = (event.kind, event.step)
        if mark in left:
            left.remove(mark)
        else:
            yield side, event
