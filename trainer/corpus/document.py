"""Documents and records of any source, and what could not be read as one. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from trainer.errors import DataError

EXCERPT_BYTES = 200
"""Largest number of bytes of a bad record that are kept."""


class Origin(NamedTuple):
    """The place of a record, as errors and audits name it."""

    what: str
    """One of line, row, member, document, file; byte where the unit begins in the middle of a file."""
    number: int
    """Its number in the file, counted from 1; 0 for the file as a whole. For byte: the bytes before it."""
    path: str

    def __str__(self) -> str:
        """Return `line 3 of x.jsonl`, or the path alone."""
        return self.path if self.number == 0 else f"{self.what} {self.number} of {self.path}"


@dataclass
class Document:
    """One text, in the chunks in which it was read: a single one, unless it is long. They can be taken once.

    Taking the chunks of a long one may raise `BadDocument`.
    """

    origin: Origin
    chunks: Iterator[str]
    continues: bool = False
    """True if the document began in the unit before."""
    is_open: bool = False
    """True if it goes on in the next unit: no token that ends a document follows. Known once its chunks are taken."""

    @classmethod
    def of(cls, origin: Origin, text: str) -> Document:
        """Return a document that was read whole."""
        return cls(origin, iter((text,)))


@dataclass(frozen=True)
class Record:
    """One object of a source that holds objects."""

    origin: Origin
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class EmptyRecord:
    """A text that is empty, blank or null: it is left out, and counted."""

    origin: Origin


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be read: an error, or left out and counted, as `data.on_bad_record` says."""

    origin: Origin
    problem: str
    """The whole sentence of the error: what must hold, what was found, the key to change."""
    excerpt: bytes = b""
    """Its first bytes, at most `EXCERPT_BYTES`."""

    def error(self) -> DataError:
        """Return the error that ends the reading with data.on_bad_record=error."""
        return DataError(self.problem, ["data.on_bad_record=skip leaves such records out, and lists them"])

    def to_dict(self) -> dict[str, str]:
        """Return the line of skipped.jsonl."""
        shown = self.excerpt[:EXCERPT_BYTES].decode("utf-8", errors="replace")
        return {"where": str(self.origin), "why": self.problem, "excerpt": shown}


class BadDocument(DataError):
    """A fault that ends the reading of a document, or of all that is left of a file.

    Args:
        record: what cannot be read.
    """

    def __init__(self, record: BadRecord) -> None:
        super().__init__(record.problem)
        self.record = record
