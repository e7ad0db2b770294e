"""Blocks of documents that wait on disk for a worker, since their file cannot be entered in the middle. No torch.

An entry is its kind in a byte, two lengths in 8 bytes each, a head in JSON, and a text. A block holds whole documents or
records; only the order of the input and the size of a block decide which.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from trainer.corpus.document import BadDocument, BadRecord, Document, EmptyRecord, Origin, Record

Item = Document | Record | EmptyRecord | BadRecord
_ENTRY = struct.Struct("<BQQ")
_DOCUMENT, _MORE, _RECORD, _BAD, _BROKEN, _EMPTY = range(6)
_ENCODING = ("utf-8", "surrogatepass")


class Block:
    """Items up to about some bytes of text. They can be taken once, and before the next block.

    Args:
        number: its number in the unit.
        items: those of the unit, shared by all blocks.
        first: the first one.
        size: bytes of text behind which it ends with an item.
    """

    def __init__(self, number: int, items: Iterator[Item], first: Item, size: int) -> None:
        self.number = number
        self._items = items
        self._first = first
        self._size = size

    def __iter__(self) -> Iterator[Item]:
        """Yield its items."""
        held = 0

        def counted(chunks: Iterable[str]) -> Iterator[str]:
            nonlocal held
            for chunk in chunks:
                held += len(chunk) if chunk.isascii() else len(chunk.encode("utf-8", "replace"))
                yield chunk

        for item in chain((self._first,), self._items):
            if isinstance(item, Document):
                item.chunks = counted(item.chunks)
                yield item
            elif isinstance(item, Record):
                # Through JSON, which is how it would come from a disk.
                content = json.dumps(dict(item.fields), default=str)
                held += len(content)
                yield Record(item.origin, json.loads(content))
            elif isinstance(item, EmptyRecord):
                held += 1
                yield item
            else:
                held += len(item.excerpt)
                yield item
            if held >= self._size:
                return


def blocks(items: Iterable[Item], size: int) -> Iterator[Block]:
    """Yield the blocks of a unit that is fed; each must be taken to its end before the next one."""
    rest = iter(items)
    for number, first in enumerate(rest):
        yield Block(number, rest, first, size)


def write_block(items: Iterable[Item], path: Path) -> None:
    """Write a block.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("wb") as file:
        for item in items:
            if isinstance(item, Document):
                _write_document(file, item)
            elif isinstance(item, Record):
                _write(file, _RECORD, [item.origin, dict(item.fields)])
            elif isinstance(item, EmptyRecord):
                _write(file, _EMPTY, [item.origin])
            else:
                _write_bad(file, _BAD, item)


def _write_document(file: BinaryIO, document: Document) -> None:
    chunks = iter(document.chunks)
    head = [document.origin, document.continues, document.is_open]
    try:
        _write(file, _DOCUMENT, head, next(chunks, ""))
        for chunk in chunks:
            _write(file, _MORE, None, chunk)
    except BadDocument as bad:
        _write_bad(file, _BROKEN, bad.record)


def _write_bad(file: BinaryIO, kind: int, bad: BadRecord) -> None:
    _write(file, kind, [bad.origin, bad.problem, bad.excerpt.decode("latin-1")])


def _write(file: BinaryIO, kind: int, head: object, text: str = "") -> None:
    begin, content = json.dumps(head, default=str).encode(), text.encode(*_ENCODING)
    file.write(_ENTRY.pack(kind, len(begin), len(content)))
    file.write(begin)
    file.write(content)


def read_block(path: Path) -> Iterator[Item]:
    """Yield the items of a block. The chunks of a document must be taken before the next one.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        entries = _Entries(file)
        while entries.kind is not None:
            head = entries.head
            if entries.kind == _RECORD:
                entries.go_on()
                yield Record(Origin(*head[0]), head[1])
            elif entries.kind == _EMPTY:
                entries.go_on()
                yield EmptyRecord(Origin(*head[0]))
            elif entries.kind == _BAD:
                entries.go_on()
                yield _bad(head)
            else:
                yield Document(Origin(*head[0]), _chunks(entries), head[1], head[2])


class _Entries:
    """The entries of a block, one at a time.

    Args:
        file: the block.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.go_on()

    def go_on(self) -> None:
        """Read the next entry; `kind` is None behind the last one."""
        self.kind: int | None = None
        self.head: Any = None
        self.text = ""
        begin = self._file.read(_ENTRY.size)
        if begin:
            self.kind, head, text = _ENTRY.unpack(begin)
            self.head = json.loads(self._file.read(head))
            self.text = self._file.read(text).decode(*_ENCODING)


def _chunks(entries: _Entries) -> Iterator[str]:
    text = entries.text
    entries.go_on()
    yield text
    while entries.kind in (_MORE, _BROKEN):
        kind, head, text = entries.kind, entries.head, entries.text
        entries.go_on()
        if kind == _BROKEN:
            raise BadDocument(_bad(head))
        yield text


def _bad(head: list[Any]) -> BadRecord:
    return BadRecord(Origin(*head[0]), head[1], head[2].encode("latin-1"))
