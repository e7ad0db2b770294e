"""Tables of columns: parquet, of which a unit is some row groups, and arrow, as the `datasets` library saves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from trainer.corpus.addresses import is_address
from trainer.corpus.document import BadDocument, BadRecord, Origin
from trainer.corpus.opening import seekable, unreadable
from trainer.corpus.record_text import Row, paths
from trainer.corpus.units import Compression, InputFile, Kind, Span
from trainer.corpus.wording import column_fault, reason

_ROWS = 1024
"""Largest number of rows held in memory at once."""
_ROW_BYTES = 16 << 20
"""Bytes of rows held in memory at once, about, where a row has not more."""
_FILE_MAGIC = b"ARROW1"


def table_rows(file: InputFile, span: Span, keys: Mapping[str, str], is_alone: bool) -> Iterator[Row | BadRecord]:
    """Yield the rows of a table, or of some row groups of a parquet file.

    Args:
        file: the file.
        span: its row groups.
        keys: key of the config -> name of a column that the file must have, or of a field below one.
        is_alone: True if only these columns are read.
    """
    read = _parquet if file.kind is Kind.parquet else _arrow
    try:
        with seekable(file) as content, _good(file):
            yield from read(file, span, content, _Wanted(file, keys, is_alone))
    except BadDocument as bad:
        yield bad.record


def row_group_bytes(file: InputFile) -> list[int]:
    """Return the bytes of content of each row group; an empty list if the file cannot be read."""
    import pyarrow.parquet

    try:
        with seekable(file) as content, _good(file), pyarrow.parquet.ParquetFile(content) as table:
            groups = range(table.metadata.num_row_groups)
            return [int(table.metadata.row_group(group).total_byte_size) for group in groups]
    except BadDocument:
        return []


@contextmanager
def _good(file: InputFile) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except BadDocument:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"data.files must be readable, but {file.path} is no good {file.kind.value} file: {reason(error)}"
        raise unreadable(file, problem) from error


class _Wanted:
    """The columns that are read.

    Args:
        file: the file.
        keys: key of the config -> name of a column, or of a field below one.
        is_alone: True if only these are read.
    """

    def __init__(self, file: InputFile, keys: Mapping[str, str], is_alone: bool) -> None:
        self._file = file
        self._keys = keys
        self._is_alone = is_alone

    def of(self, names: Sequence[str]) -> list[str] | None:
        """Return the columns of a table that are read; None for all.

        Raises:
            BadDocument: a column is missing.
        """
        found = []
        for key, name in self._keys.items():
            columns = [name, *(head for head, _ in paths(name))]
            column = next((column for column in columns if column in names), None)
            if column is None:
                raise unreadable(self._file, column_fault(self._file.path, key, name, names))
            if names.count(column) > 1:
                raise unreadable(self._file, column_fault(self._file.path, key, column, names))
            found.append(column)
        return found if self._is_alone else None


def _parquet(file: InputFile, span: Span, content: Any, wanted: _Wanted) -> Iterator[Row]:
    import pyarrow.parquet

    # What is read ahead would be whole columns of all row groups.
    with pyarrow.parquet.ParquetFile(content, pre_buffer=False, buffer_size=1 << 20) as table:
        columns = wanted.of(table.schema_arrow.names)
        facts = table.metadata
        groups = list(range(span.first, facts.num_row_groups if span.end is None else span.end))
        number = sum(facts.row_group(group).num_rows for group in range(span.first))
        size = max((facts.row_group(group).total_byte_size for group in groups), default=0)
        rows = max((facts.row_group(group).num_rows for group in groups), default=0)
        for batch in table.iter_batches(_held_rows(rows, size), row_groups=groups, columns=_leaves(table, columns)):
            yield from _numbered(file, batch, number)
            number += batch.num_rows


def _leaves(table: Any, columns: list[str] | None) -> list[str] | None:
    """Return what the library calls these columns: a dot in a name would be read as a path."""
    if columns is None:
        return None
    schema = table.schema
    every = [schema.column(index).path for index in range(len(schema))]
    tops = [name for name in columns if "." in name]
    return [*columns, *(path for path in every for name in tops if path == name or path.startswith(f"{name}."))]


def _arrow(file: InputFile, span: Span, content: Any, wanted: _Wanted) -> Iterator[Row]:
    import pyarrow
    import pyarrow.ipc

    is_local = file.compression is Compression.none and not is_address(file.path)
    source = pyarrow.memory_map(file.path) if is_local else pyarrow.PythonFile(content, mode="r")
    with source:
        is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        source.seek(0)
        with pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source) as table:
            columns = wanted.of(table.schema.names)
            batches: Iterator[Any] = map(table.get_batch, range(table.num_record_batches)) if is_file else iter(table)
            number = 0
            for whole in batches:
                batch = whole if columns is None else whole.select(columns)
                step = _held_rows(batch.num_rows, batch.nbytes)
                for first in range(0, batch.num_rows, step):
                    yield from _numbered(file, batch.slice(first, step), number + first)
                number += batch.num_rows


def _held_rows(rows: int, size: int) -> int:
    return max(1, min(_ROWS, _ROW_BYTES * rows // size if size else _ROWS))


def _numbered(file: InputFile, batch: Any, before: int) -> Iterator[Row]:
    for number, row in enumerate(batch.to_pylist(), start=before + 1):
        yield Row(Origin("row", number, file.path), row)
