"""metrics.csv: the rows of metrics.jsonl for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.files import storage_faults, write_atomically
from trainer.loop.events import StepReport
from trainer.metrics.row import ROW_NAMES
from trainer.metrics.sink import Row, Sink


class CsvSink(Sink):
    """Appends rows to `path`. Columns: `ROW_NAMES`, then others in the order in which they first came.

    A value that a row does not have is an empty cell. A new name adds a column, for which the whole file is written
    anew. A run that resumes before its last row drops the rows that it is about to write again.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = list(ROW_NAMES)

    def start(self, first_step: int) -> None:
        """Drop rows from `first_step` on, and a row that a crash left incomplete."""
        columns, rows = _read(self._path)
        self._columns += [name for name in columns if name not in self._columns]
        self._rewrite(row for row in rows if int(row["step"]) < first_step)

    def rewind(self, step: int) -> None:
        """Drop the rows of later steps."""
        self.start(step + 1)

    def write(self, row: Row, report: StepReport) -> None:
        """Append the row; a reader sees it at once."""
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite(_read(self._path)[1])
        with storage_faults(self._path), self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_lines([[row.get(name, "") for name in self._columns]]))

    def _rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        cells = [[row.get(name, "") for name in self._columns] for row in rows]
        write_atomically(self._path, _lines([self._columns, *cells]))


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the whole rows of a file; nothing from a file that is not ours."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return [], []
    # A row without its line's end is incomplete.
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    columns = lines[0] if lines else []
    if "step" not in columns:
        return [], []
    rows = [dict(zip(columns, cells, strict=True)) for cells in lines[1:] if len(cells) == len(columns)]
    return columns, [row for row in rows if row["step"].isdigit()]
