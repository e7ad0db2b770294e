"""Files of comma- or tab-separated values: the first row names the columns, and quoted values may hold line ends."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from typing import IO

from trainer.corpus.document import BadDocument, BadRecord, Origin
from trainer.corpus.opening import not_utf8, readable, unreadable
from trainer.corpus.record_text import Row
from trainer.corpus.units import InputFile, Kind
from trainer.corpus.wording import column_fault, reason


def csv_rows(file: InputFile, keys: Mapping[str, str]) -> Iterator[Row | BadRecord]:
    """Yield the rows of a file, as objects.

    Args:
        file: the file.
        keys: key of the config -> name of a column that the file must have.
    """
    # The library refuses values of more than 128 KiB otherwise.
    csv.field_size_limit(sys.maxsize)
    try:
        with readable(file) as content:
            yield from _rows(file, keys, content)
    except BadDocument as bad:
        yield bad.record


def _rows(file: InputFile, keys: Mapping[str, str], content: IO[bytes]) -> Iterator[Row | BadRecord]:
    # Bytes that are no UTF-8 stay in their row.
    lines = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(lines, csv.excel_tab if file.kind is Kind.tsv else csv.excel, strict=True)
    names: list[str] | None = None
    number = 0
    while True:
        number += names is not None
        origin = Origin("row", number, file.path)
        try:
            row = next(reader, None)
        except csv.Error as error:
            if names is None:
                problem = f"the first row of {file.path} must name columns, but does not: {reason(error)}"
                raise unreadable(file, problem) from error
            problem = f"data.files must be rows of {file.kind.value}, but {origin} is none: {reason(error)}"
            yield BadRecord(origin, problem)
            continue
        if row is None:
            lines.detach()
            return
        if names is None:
            names = row
            for key, name in keys.items():
                if names.count(name) != 1:
                    raise unreadable(file, column_fault(file.path, key, name, names))
        elif row:
            yield _row(origin, names, row)


def _row(origin: Origin, names: list[str], row: list[str]) -> Row | BadRecord:
    excerpt = ",".join(row)[:200].encode("utf-8", errors="surrogateescape")
    if len(row) != len(names):
        problem = f"each row must have {len(names)} values, as the first has, but {origin} has {len(row)}"
        return BadRecord(origin, problem, excerpt)
    if not all(value.isascii() or _is_utf8(value) for value in row):
        return not_utf8(origin, origin.path, f"in row {origin.number}", excerpt)
    return Row(origin, dict(zip(names, row, strict=True)))


def _is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
