"""The division of input files into units, by the files alone. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

from trainer.corpus.tables import row_group_bytes
from trainer.corpus.units import UNIT_BYTES, UNIT_FILES, Compression, InputFile, Kind, Span, Unit

_ASKED_AT_ONCE = 16
"""Number of tables whose row groups are asked for at the same time."""
_ASKED_TOGETHER = 1024
_COMPRESSION_RATIO = 4
"""Bytes of content in a byte of a compressed file, about."""


def cut(
    files: Sequence[InputFile], unit_bytes: int | None = UNIT_BYTES, unit_files: int = UNIT_FILES
) -> Iterator[Unit]:
    """Yield the units of some files in order; their numbers rise from 0.

    Consecutive small files share a unit. A larger one that can be entered in the middle is several units, and another
    one is a single unit that a feeder reads.

    Args:
        files: the input, as `input_files` returns it.
        unit_bytes: content of a unit, about, in bytes; None: files are not divided.
        unit_files: largest number of files in a unit.
    """
    numbers = count()
    groups = _row_groups([file for file in files if file.kind is Kind.parquet and _is_divided(file, unit_bytes)])
    shared: list[Span] = []
    held = 0
    for index, file in enumerate(files):
        content, is_small = _content_bytes(file), _is_small(file, unit_bytes)
        if shared and (not is_small or len(shared) == unit_files or _exceeds(held, content, unit_bytes)):
            yield Unit(next(numbers), tuple(shared))
            shared, held = [], 0
        if is_small:
            shared.append(Span(index, 0, None))
            held += content or 0
            continue
        assert unit_bytes is not None, "without a limit every file is small"
        if not _is_divided(file, unit_bytes):
            yield Unit(next(numbers), (Span(index, 0, None),), is_fed=True)
            continue
        for span in _spans(index, file, unit_bytes, groups):
            yield Unit(next(numbers), (span,))
    if shared:
        yield Unit(next(numbers), tuple(shared))


def _content_bytes(file: InputFile) -> int | None:
    if file.size is None or file.compression is Compression.none:
        return file.size
    return file.size * _COMPRESSION_RATIO


def _is_small(file: InputFile, unit_bytes: int | None) -> bool:
    content = _content_bytes(file)
    return unit_bytes is None or (content is not None and content <= unit_bytes)


def _is_divided(file: InputFile, unit_bytes: int | None) -> bool:
    return file.size is not None and file.is_divisible and not _is_small(file, unit_bytes)


def _row_groups(files: Sequence[InputFile]) -> Iterator[list[int]]:
    """Yield the bytes of the row groups of each file. Several are asked at once: each may be far away."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as asking:
        for first in range(0, len(files), _ASKED_TOGETHER):
            yield from asking.map(row_group_bytes, files[first : first + _ASKED_TOGETHER])


def _exceeds(held: int, content: int | None, unit_bytes: int | None) -> bool:
    return unit_bytes is not None and held + (content or 0) > unit_bytes


def _spans(index: int, file: InputFile, unit_bytes: int, groups: Iterator[list[int]]) -> Iterator[Span]:
    assert file.size is not None, "only files of a known size are divided"
    if file.kind is not Kind.parquet:
        for first in range(0, file.size, unit_bytes):
            yield Span(index, first, min(first + unit_bytes, file.size))
        return
    sizes = next(groups)
    first = held = 0
    for group, size in enumerate(sizes):
        if group > first and held + size > unit_bytes:
            yield Span(index, first, group)
            first, held = group, 0
        held += size
    # A damaged file has no row groups: whoever reads it says so.
    yield Span(index, first, len(sizes) or None)
