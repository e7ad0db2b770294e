"""The tokens of one unit as one file, which is there whole or not at all. No torch.

The ids come first, since they are written as they are made; then an array for each fact about pieces; then the records
that were skipped, a JSON object a line; then a description of where all this is, and its length in the last 8 bytes.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from trainer.corpus.document import BadRecord
from trainer.data.shared_cache import host, share

UNFINISHED = ".tmp"
BEGINS, CONTINUES, OPEN, TRUNCATED, EMPTIED, DROPPED = (1 << bit for bit in range(6))
"""Flags of a piece. It is the first of its document; the last one of the unit before goes on with it; it goes on in the
next unit; of an example: its end is left out, it has nothing to learn from, it is too long."""
_TAIL = 8
_COLUMNS = {"lengths": "q", "text_bytes": "q", "parts": "B", "flags": "B"}
_COPIED = 1 << 20


@dataclass(frozen=True)
class Facts:
    """Numbers about a finished unit."""

    documents: int
    """Documents or records that begin in it, empty and skipped ones left out."""
    tokens: int
    text_bytes: int
    skipped: int
    empty: int
    is_open: bool
    """True if its last document goes on in the next unit."""


class UnitWriter:
    """A growing file of results. A context manager: under its name the file appears when it ends without an error.

    Args:
        path: path of the finished file.
        dtype: numpy's name of the ids' type; every id fits.
        has_marks: true if a mark is beside each id.

    Raises:
        OSError: the file cannot be written, also of all methods.
    """

    def __init__(self, path: Path, dtype: str, has_marks: bool = False) -> None:
        self._path = path
        self._dtype = np.dtype(dtype).newbyteorder("<")
        # Whoever does the same unit at the same time writes under another name.
        self._unfinished = path.with_name(f".{path.name}.{host()}.{secrets.token_hex(6)}{UNFINISHED}")
        self._columns = {name: array(kind) for name, kind in _COLUMNS.items()}
        self._hashes = array("B")
        self.note = ""
        """A sentence about the unit that its results keep."""
        self.empty = 0
        """Number of texts that are empty."""
        self._skipped_count = 0
        self._tokens = 0
        self._piece = self._text_bytes = self._flags = 0
        self._ids: BinaryIO = self._unfinished.open("w+b")
        self._marks = tempfile.TemporaryFile(dir=path.parent) if has_marks else None  # noqa: SIM115 - closed at the end
        self._skipped = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed at the end of the context.

    def __enter__(self) -> UnitWriter:
        return self

    def add_ids(self, ids: npt.NDArray[np.integer[Any]], marks: npt.NDArray[np.uint8] | None = None) -> None:
        """Write ids of the piece that grows."""
        self._ids.write(ids.astype(self._dtype).tobytes())
        if self._marks is not None:
            self._marks.write((np.zeros(len(ids), np.uint8) if marks is None else marks).tobytes())
        self._tokens += len(ids)
        self._piece += len(ids)

    def grow_text(self, text_bytes: int, flags: int = 0) -> None:
        """Note bytes of text, and flags, of the piece that grows."""
        self._text_bytes += text_bytes
        self._flags |= flags

    def end_piece(self, part: int) -> None:
        """End the piece that grows."""
        for name, value in zip(_COLUMNS, (self._piece, self._text_bytes, part, self._flags), strict=True):
            self._columns[name].append(value)
        self._piece = self._text_bytes = self._flags = 0

    def add_hash(self, digest: bytes) -> None:
        """Note the hash of a document, in their order."""
        self._hashes.frombytes(digest)

    def skip(self, record: BadRecord) -> None:
        """Note a record that is left out."""
        self._skipped.write(json.dumps(record.to_dict(), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._skipped_count += 1

    def mark(self) -> tuple[int, int]:
        """Return the place that `rewind` goes back to: the end of the last piece."""
        return self._tokens - self._piece, len(self._columns["lengths"])

    def rewind(self, to: tuple[int, int]) -> None:
        """Forget all pieces since a `mark`."""
        self._tokens, pieces = to
        self._piece = self._text_bytes = self._flags = 0
        self._ids.seek(self._tokens * self._dtype.itemsize)
        self._ids.truncate()
        if self._marks is not None:
            self._marks.seek(self._tokens)
            self._marks.truncate()
        for column in self._columns.values():
            del column[pieces:]

    def facts(self) -> Facts:
        """Return the numbers so far."""
        flags = np.array(self._columns["flags"], np.uint8)
        text_bytes = int(np.array(self._columns["text_bytes"], np.int64).sum())
        is_open = len(flags) > 0 and bool(flags[-1] & OPEN)
        return Facts(int(((flags & BEGINS) > 0).sum()), self._tokens, text_bytes, self._skipped_count, self.empty, is_open)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._ids, self._skipped:
                if kind is None:
                    self._finish()
            if kind is None:
                self._unfinished.replace(self._path)
                share(self._path)
        finally:
            if self._marks is not None:
                self._marks.close()
            with suppress(OSError):
                self._unfinished.unlink(missing_ok=True)

    def _finish(self) -> None:
        sections = {"ids": [0, self._ids.tell()]}
        parts: dict[str, Any] = {name: column.tobytes() for name, column in self._columns.items()}
        parts |= {"hashes": self._hashes.tobytes(), "skipped": self._skipped}
        if self._marks is not None:
            parts["marks"] = self._marks
        for name, content in parts.items():
            first = self._ids.tell()
            if isinstance(content, bytes):
                self._ids.write(content)
            else:
                content.seek(0)
                while block := content.read(_COPIED):
                    self._ids.write(block)
            sections[name] = [first, self._ids.tell()]
        facts = self.facts()
        held = {"sections": sections, "dtype": self._dtype.str, "facts": asdict(facts), "note": self.note}
        tail = json.dumps(held).encode()
        self._ids.write(tail + len(tail).to_bytes(_TAIL, "little"))
        self._ids.flush()
        os.fsync(self._ids.fileno())


class UnitResult:
    """A finished file of results; only what is asked for is read.

    Args:
        path: path of the file.
        facts: numbers about it.
        sections: name -> first byte and the one behind the last.
        dtype: type of the ids.
        note: the writer's note.
    """

    def __init__(
        self, path: Path, facts: Facts, sections: Mapping[str, tuple[int, int]], dtype: str, note: str
    ) -> None:
        self.path = path
        self.facts = facts
        self.note = note
        self.dtype = np.dtype(dtype)
        self._sections = sections

    @classmethod
    def open(cls, path: Path) -> UnitResult | None:
        """Return the results in a file; None if it is missing, or a power failure took a part of it."""
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(size - _TAIL)
                length = int.from_bytes(file.read(_TAIL), "little")
                file.seek(size - _TAIL - length)
                held = json.loads(file.read(length))
            sections = {name: (int(first), int(end)) for name, (first, end) in held["sections"].items()}
            return cls(path, Facts(**held["facts"]), sections, held["dtype"], held["note"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the tokens of each piece."""
        return self._column("lengths", np.int64)

    def text_bytes(self) -> npt.NDArray[np.int64]:
        """Return the bytes of each piece's text."""
        return self._column("text_bytes", np.int64)

    def parts(self) -> npt.NDArray[np.uint8]:
        """Return the part of each piece."""
        return self._column("parts", np.uint8)

    def flags(self) -> npt.NDArray[np.uint8]:
        """Return the flags of each piece."""
        return self._column("flags", np.uint8)

    def hashes(self) -> npt.NDArray[np.uint8]:
        """Return the hash of each document, shape (documents, 16)."""
        return self._column("hashes", np.uint8).reshape(-1, 16)

    def ids(self, first: int, end: int) -> npt.NDArray[Any]:
        """Return the ids at some places of the unit."""
        begin = self._sections["ids"][0]
        size = self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, end - first, offset=begin + first * size)

    def marks(self, first: int, end: int) -> npt.NDArray[np.uint8]:
        """Return the marks at some places of the unit."""
        return np.fromfile(self.path, np.uint8, end - first, offset=self._sections["marks"][0] + first)

    def skipped(self) -> Iterator[bytes]:
        """Yield the lines about records that were left out."""
        first, end = self._sections["skipped"]
        with self.path.open("rb") as file:
            file.seek(first)
            while file.tell() < end:
                yield file.readline()

    def _column(self, name: str, kind: type[Any]) -> npt.NDArray[Any]:
        first, end = self._sections[name]
        return np.fromfile(self.path, kind, (end - first) // np.dtype(kind).itemsize, offset=first)
