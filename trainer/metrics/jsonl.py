"""metrics.jsonl: one JSON object for each logged step, the record that every run leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path

from trainer.files import storage_faults, write_atomically
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.sink import Row, Sink


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics file in order, without an incomplete last line. No file: no rows."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def line_of(row: Mapping[str, object]) -> str:
    """Return a row as a line of JSON."""
    return json.dumps(row, allow_nan=False) + "\n"


def drop_rows_from(path: Path, first_step: int) -> None:
    """Keep only whole rows of steps before `first_step`: a resumed run writes the others again.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """
    kept = [row for row in read_rows(path) if row["step"] < first_step]
    write_atomically(path, "".join(line_of(row) for row in kept))


class JsonlSink(Sink):
    """Appends rows to `path`.

    Steps are strictly increasing, also over restarts: a run that resumes before its last row drops the rows it is
    about to write again.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIOWrapper | None = None

    def start(self, first_step: int) -> None:
        """Drop rows from `first_step` on and open the file for appending."""
        drop_rows_from(self._path, first_step)
        with storage_faults(self._path):
            self._file = self._path.open("a", encoding="utf-8")

    def rewind(self, step: int) -> None:
        """Drop the rows of later steps."""
        self._close()
        self.start(step + 1)

    def write(self, row: Row, report: StepReport) -> None:
        """Append the row; a reader sees it at once."""
        assert self._file is not None, "start must be called before write"
        with storage_faults(self._path):
            self._file.write(line_of(row))
            self._file.flush()

    def end(self, end: RunEnd) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            with storage_faults(self._path):
                self._file.close()
            self._file = None
