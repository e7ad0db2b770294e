"""The rows of metrics.jsonl as columns of numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from trainer.errors import first_line
from trainer.records.tolerant import LineReader

Steps = NDArray[np.int64]
Values = NDArray[np.float64]
_CHUNK_ROWS = 4096
_MOST_STEPS = 2**53
_NOT_FINITE = {"nan": np.nan, "inf": np.inf, "infinity": np.inf, "-inf": -np.inf, "-infinity": -np.inf}


class Metrics:
    """The rows of a run as columns.

    Args:
        steps: step of each row.
        columns: name -> steps of the rows that have it, and its values there.
    """

    def __init__(self, steps: Steps, columns: Mapping[str, tuple[Steps, Values]]) -> None:
        self.steps = steps
        """Step of each row; ascending, unless these are discarded rows."""
        self._columns = dict(columns)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns in the order in which rows first had them, `step` not among them."""
        return tuple(self._columns)

    def series(self, name: str) -> tuple[Steps, Values]:
        """Return the steps at which a name has a value, and the values; both empty for an unknown name.

        A value is NaN or infinite where the row says so, or says null; Trident itself leaves such values out.
        """
        return self._columns.get(name, (np.empty(0, np.int64), np.empty(0)))

    def last(self, name: str) -> float | None:
        """Return the last finite value of a name; None if it has none."""
        values = self.series(name)[1]
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None


def read_metrics(path: Path, notes: list[str]) -> tuple[Metrics, Metrics]:
    """Return the rows that count, in the order of steps, and the discarded ones, in the order of the file.

    The last row of a step counts. Earlier ones are of steps that were done again, or of another process that wrote
    into the same file, and are noted.
    """
    reader = LineReader(path)
    collector = _Collector()
    try:
        found = iter(_with_steps(reader))
        while rows := list(islice(found, _CHUNK_ROWS)):
            collector.add(rows)
    except OSError as error:
        notes.append(f"{path.name} cannot be read to its end: {error.strerror or first_line(error)}")
    reader.note(notes)
    counting, discarded = collector.split()
    if many := len(discarded):
        steps = "a step that comes" if many == 1 else "steps that come"
        notes.append(
            f"{path.name} has {many} row{'s' * (many > 1)} of {steps} again later in it; the last row of a step counts"
        )
    return counting, discarded


def _with_steps(reader: LineReader) -> Iterable[dict[str, Any]]:
    for row in reader.objects():
        step = step_of(row)
        if step is None:
            reader.bad_lines += 1
            continue
        row["step"] = step
        yield row


def step_of(row: Mapping[str, object]) -> int | None:
    """Return the step of a row; None if it is no whole number from 0 on."""
    step = row.get("step")
    if isinstance(step, float) and step.is_integer():
        step = int(step)
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _MOST_STEPS else None


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a cell is a number of a size that a float can hold; NaN and infinities are."""
    if isinstance(value, bool):
        return False
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


class _Collector:
    """Takes rows a chunk at a time, so that no more than a chunk of them is there as dicts."""

    def __init__(self) -> None:
        self._count = 0
        self._steps: list[Steps] = []
        self._parts: dict[str, list[tuple[Steps, Values]]] = {}
        """Name -> numbers of rows, and the values there."""

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        alike: dict[tuple[str, ...], list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(tuple(row), []).append(place)
        self._steps.append(np.array([row["step"] for row in rows], dtype=np.int64))
        for names, places in alike.items():
            values = [list(rows[place].values()) for place in places]
            numbers = np.array(places, dtype=np.int64) + self._count
            try:
                table = np.array(values, dtype=np.float64)
            except (ValueError, TypeError, OverflowError):
                self._add_cells(names, numbers, values)
                continue
            for column, name in enumerate(names):
                self._parts.setdefault(name, []).append((numbers, table[:, column]))
        self._count += len(rows)

    def _add_cells(self, names: Sequence[str], numbers: Steps, values: Sequence[Sequence[object]]) -> None:
        """Add rows in which something is no number."""
        for column, name in enumerate(names):
            cells = [_number(row[column]) for row in values]
            held = [place for place, cell in enumerate(cells) if cell is not None]
            if held:
                kept = np.array([cells[place] for place in held], dtype=np.float64)
                self._parts.setdefault(name, []).append((numbers[held], kept))

    def split(self) -> tuple[Metrics, Metrics]:
        """Return the rows that count and the others."""
        steps = np.concatenate(self._steps) if self._steps else np.empty(0, np.int64)
        order = np.argsort(steps, kind="stable")
        ends = np.append(np.diff(steps[order]) != 0, True)[: len(steps)]
        kept = order[ends]
        others = np.delete(np.arange(len(steps)), kept)
        return self._of_rows(steps, kept), self._of_rows(steps, others)

    def _of_rows(self, steps: Steps, rows: Steps) -> Metrics:
        """Return the columns of these rows, in their order."""
        if not len(rows):
            return Metrics(np.empty(0, np.int64), {})
        place = np.full(len(steps), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        columns: dict[str, tuple[Steps, Values]] = {}
        for name, parts in self._parts.items():
            if name == "step":
                continue
            at = place[np.concatenate([numbers for numbers, _ in parts])]
            values = np.concatenate([held for _, held in parts])
            at, values = at[at >= 0], values[at >= 0]
            if not len(at):
                continue
            in_order = np.argsort(at, kind="stable")
            columns[name] = steps[rows][at[in_order]], values[in_order]
        return Metrics(steps[rows], columns)


def _number(value: object) -> float | None:
    """Return a cell as a number; None if it is none."""
    if value is None:
        return float(np.nan)
    if isinstance(value, str):
        return _NOT_FINITE.get(value.strip().lower())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return float(np.inf) if value > 0 else float(-np.inf)
