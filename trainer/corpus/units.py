"""Parts of the input that are read one by one, cut by the input alone: who reads them does not matter. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

UNIT_BYTES = 16 << 20
"""Bytes of content in a unit, about: a record belongs to the unit in which its first byte lies."""
UNIT_FILES = 4096
"""Largest number of small files in a unit."""


class Kind(Enum):
    """Form of a file's content."""

    text = "txt"
    json_lines = "jsonl"
    json = "json"
    """An array, or lines of objects under that name; its first byte tells."""
    csv = "csv"
    tsv = "tsv"
    parquet = "parquet"
    arrow = "arrow"
    tar = "tar"
    hub = "hub"
    """Data set that the `datasets` library reads; its path is a name."""


class Compression(Enum):
    """Compression of a whole file."""

    none = ""
    gz = "gz"
    zst = "zst"
    bz2 = "bz2"
    xz = "xz"


@dataclass(frozen=True)
class InputFile:
    """One file of the input."""

    path: str
    """Absolute path, or address of a remote file."""
    size: int | None
    """Size as it is stored, in bytes; None if a remote place does not tell."""
    identity: str
    """Text that changes when the file does."""
    kind: Kind
    compression: Compression = Compression.none

    @property
    def is_divisible(self) -> bool:
        """True if reading can begin at any byte and go to the next record; parquet is divided by row groups."""
        lines = self.kind in (Kind.text, Kind.json_lines)
        return self.compression is Compression.none and (lines or self.kind is Kind.parquet)


@dataclass(frozen=True)
class Span:
    """A part of a file: bytes of its content, or row groups of a table."""

    file: int
    """Index in the list of input files."""
    first: int
    end: int | None
    """The byte or row group behind it; None for the end of the file."""


@dataclass(frozen=True)
class Unit:
    """The work of one worker at a time."""

    number: int
    spans: tuple[Span, ...]
    is_fed: bool = False
    """True if its content is a block that a feeder has counted off, since the file is not divisible."""
