"""Tables of columns: parquet. A unit of one is some of its row groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.corpus.document import BadDocument, BadRecord, Origin
from trainer.corpus.opening import unreadable
from trainer.corpus.record_text import Row
from trainer.corpus.units import InputFile, Span
from trainer.corpus.wording import listed, reason

_ROWS = 1024
"""Number of rows held in memory at once."""


def parquet_rows(
    file: InputFile, span: Span, keys: Mapping[str, str], columns: list[str] | None = None
) -> Iterator[Row | BadRecord]:
    """Yield the rows of some row groups.

    Args:
        file: the file.
        span: its row groups.
        keys: key of the config -> name of a column that the file must have.
        columns: columns that are read; None: all.
    """
    try:
        yield from _rows(file, span, keys, columns)
    except BadDocument as bad:
        yield bad.record


def row_group_bytes(file: InputFile) -> list[int]:
    """Return the bytes of content of each row group; an empty list if the file cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            groups = range(table.metadata.num_row_groups)
            return [int(table.metadata.row_group(group).total_byte_size) for group in groups]
    except (pyarrow.ArrowException, OSError):
        return []


def _rows(file: InputFile, span: Span, keys: Mapping[str, str], columns: list[str] | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            names = table.schema_arrow.names
            for key, name in keys.items():
                if name not in names:
                    raise unreadable(file, f"{file.path} must have the column {key}={name}, but has {listed(names)}")
            facts = table.metadata
            groups = range(span.first, facts.num_row_groups if span.end is None else span.end)
            number = sum(facts.row_group(group).num_rows for group in range(span.first))
            for batch in table.iter_batches(batch_size=_ROWS, row_groups=list(groups), columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(Origin("row", number, file.path), row)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        problem = f"data.files must be readable, but {file.path} is no good parquet file: {reason(error)}"
        raise unreadable(file, problem) from error
