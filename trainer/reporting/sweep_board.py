"""The points of a sweep on the page: parallel coordinates, and a table with the best first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import first_line
from trainer.records.run_record import RunRecord, is_run
from trainer.records.run_status import State
from trainer.reporting.differences import differing_keys, shown_value
from trainer.reporting.facts import number_of
from trainer.reporting.number_words import exact
from trainer.sweeps.results import EVAL_LOSS, RESULTS_FILE, TRAIN_LOSS

MOST_AXES = 9
"""Axes beside each other that can still be told apart."""
_WIDE_RANGE = 20.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""


@dataclass(frozen=True)
class SweepBoard:
    """The drawing of a sweep, and its table."""

    data: Mapping[str, Any]
    metric: str
    lower_is_better: bool
    alt: str
    head: list[str]
    rows: list[list[str]]
    runs: list[int]
    """Number of the run of each row."""
    best: int | None
    """Number of the best run; None: none finished with the metric."""
    notes: list[str]


@dataclass(frozen=True)
class Goal:
    """Measure by which runs are compared."""

    metric: str
    lower_is_better: bool = True


def goal_of(folder: Path | None, records: Sequence[RunRecord], notes: list[str]) -> Goal:
    """Return what the runs are compared by: what their sweep says, or the held-out loss if all have one.

    Args:
        folder: the sweep's folder; None: the runs were named one by one.
        records: the runs.
        notes: sentences about what could not be read are added to it.
    """
    if folder is not None:
        try:
            held = yaml.safe_load((folder / RESULTS_FILE).read_text(encoding="utf-8"))
            if isinstance(held, dict) and isinstance(held.get("metric"), str):
                return Goal(held["metric"], held.get("direction") != "maximize")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, yaml.YAMLError) as error:
            notes.append(f"{RESULTS_FILE} cannot be read: {first_line(error)}")
    has_all = all(record.metrics.last(EVAL_LOSS) is not None for record in records)
    return Goal(EVAL_LOSS if has_all else TRAIN_LOSS)


def sweep_board(records: Sequence[RunRecord], names: Sequence[str], goal: Goal) -> SweepBoard | None:
    """Return the points of a sweep; None if the runs differ in no key, or none has the metric."""
    keys = differing_keys(records)
    scores = [record.metrics.last(goal.metric) for record in records]
    if not keys or all(score is None for score in scores):
        return None
    notes = []
    if len(keys) > MOST_AXES:
        notes.append(
            f"The first {MOST_AXES} of {len(keys)} keys that differ have an axis; the table of differences has all."
        )
        keys = keys[:MOST_AXES]
    done = [
        run
        for run, record in enumerate(records)
        if scores[run] is not None and record.status.state in (State.finished, State.stopped, State.running)
    ]
    best = _best(done or [run for run, score in enumerate(scores) if score is not None], scores, goal)
    columns: list[list[object]] = [[record.config.get(key) for record in records] for key in keys]
    every: list[list[object]] = [*columns, list(scores)]
    axes = [_axis(key, column) for key, column in zip([*keys, goal.metric], every, strict=True)]
    points = [
        {
            "name": names[run],
            "values": [_point(axis, column[run]) for axis, column in zip(axes, every, strict=True)],
            "is_best": run == best,
        }
        for run in range(len(records))
    ]
    data = {"kind": "sweep", "axes": axes, "points": points, "lower_is_better": goal.lower_is_better}
    missing = sum(score is None for score in scores)
    if missing:
        notes.append(f"{missing} of {len(records)} runs never logged {goal.metric}, and are not drawn.")
    order = sorted(range(len(records)), key=lambda run: _rank(scores[run], goal))
    rows = [
        [
            names[run],
            records[run].status.state.value,
            *(shown_value(column[run]) for column in columns),
            _score(scores[run]),
        ]
        for run in order
    ]
    head = ["run", "status", *keys, goal.metric]
    word = "lowest" if goal.lower_is_better else "highest"
    alt = f"Parallel coordinates of {len(records)} runs over {', '.join(keys)}, coloured by {goal.metric}."
    if best is not None:
        settings = ", ".join(f"{key}={shown_value(column[best])}" for key, column in zip(keys, columns, strict=True))
        alt += f" The {word} {goal.metric} is {_score(scores[best])}, with {settings}."
    return SweepBoard(data, goal.metric, goal.lower_is_better, alt, head, rows, order, best, notes)


def _best(runs: Sequence[int], scores: Sequence[float | None], goal: Goal) -> int | None:
    return min(runs, key=lambda run: _rank(scores[run], goal), default=None)


def _rank(score: float | None, goal: Goal) -> float:
    if score is None:
        return math.inf
    return score if goal.lower_is_better else -score


def _score(score: float | None) -> str:
    return "" if score is None else exact(score)


def _axis(key: str, column: Sequence[object]) -> dict[str, Any]:
    """Return the axis of a key: numbers, their logarithms, or words."""
    leaf = key.rpartition(".")[2]
    numbers = [number for value in column if (number := number_of(value)) is not None]
    if len(numbers) < len([value for value in column if value is not None]) or not numbers:
        words = list(dict.fromkeys(shown_value(value) for value in column))
        return {"name": key, "leaf": leaf, "kind": "category", "values": words}
    is_log = min(numbers) > 0 and max(numbers) / min(numbers) >= _WIDE_RANGE
    return {"name": key, "leaf": leaf, "kind": "log" if is_log else "value"}


def _point(axis: Mapping[str, Any], value: object) -> object:
    return shown_value(value) if axis["kind"] == "category" else number_of(value)


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep."""
    return (folder / "sweep.json").is_file()


def sweep_runs(folder: Path) -> list[Path]:
    """Return the folders of a sweep's runs that were started, in the order of the sweep.

    A sweep's folder may have been moved: a run that is not where it was is looked for by its name beside the file.
    """
    try:
        held = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = []
    for one in held if isinstance(held, list) else []:
        place = one.get("run_dir") if isinstance(one, dict) else None
        if isinstance(place, str):
            path = folder / Path(place).name
            found.append(path if path.is_dir() else Path(place))
    return [path for path in dict.fromkeys(found) if _is_run(path)]


def _is_run(path: Path) -> bool:
    """Return whether a folder is that of a run: one that ended before it wrote anything has nothing to show."""
    try:
        return path.is_dir() and is_run(path)
    except OSError:
        return False
