"""Files named .json: an array of records, records one a line, or records one after the other on several lines each."""

from __future__ import annotations

import codecs
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import IO

from trainer.corpus.document import BadDocument, BadRecord, Origin
from trainer.corpus.json_lines import line_rows, parsed, read_value
from trainer.corpus.long_json import LONG_BYTES, LongValue
from trainer.corpus.opening import readable
from trainer.corpus.record_text import Row
from trainer.corpus.units import InputFile

_BLOCK_BYTES = 1 << 20
_BLANK = re.compile(rb"\s*+")
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_MARK = re.compile(rb'["\[\]{}]')
_SCALAR = re.compile(rb"[^\s,\[\]{}]*+")


def holds_lines(file: InputFile) -> bool:
    """Return whether a .json file holds records one a line; False if it cannot be read."""
    try:
        with readable(file) as content:
            return _is_line(_first_line(content)[-1])
    except BadDocument:
        return False


def json_rows(file: InputFile) -> Iterator[Row | BadRecord]:
    """Yield the records of a .json file."""
    try:
        with readable(file) as content:
            lines = _first_line(content)
            if _is_line(lines[-1]):
                yield from line_rows(file, content, 0, None, before=lines)
            else:
                blocks = chain(lines, iter(partial(content.read, _BLOCK_BYTES), b""))
                yield from _records(file, _Values(blocks))
    except BadDocument as bad:
        yield bad.record


def _first_line(content: IO[bytes]) -> list[bytes]:
    """Return the lines up to the first that is not blank; a very long one is cut."""
    lines = [content.readline(LONG_BYTES)]
    while lines[-1] and not lines[-1].removeprefix(codecs.BOM_UTF8).strip():
        lines.append(content.readline(LONG_BYTES))
    return lines


def _is_line(line: bytes) -> bool:
    held = line.removeprefix(codecs.BOM_UTF8).strip()
    if held[:1] == b"[":
        return False
    return len(line) == LONG_BYTES or not held or not _is_open(held)


def _is_open(held: bytes) -> bool:
    """Return whether brackets are open at the end of a line."""
    depth = 0
    for mark in re.findall(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', held):
        depth += (mark in b"[{") - (mark in b"]}")
    return depth > 0


def _records(file: InputFile, values: _Values) -> Iterator[Row | BadRecord]:
    number = 0
    try:
        for held in values:
            number += 1
            origin = Origin("record", number, file.path)
            if isinstance(held, bytes):
                yield parsed(held, origin)
            else:
                with held as spool:
                    size = spool.tell()
                    yield read_value(partial(LongValue.of_open, spool, size), b"", origin)
    except _Structure as error:
        problem = (
            f"data.files must be JSON, but {file.path} is not behind record {number}: {error}; what follows is not read"
        )
        yield BadRecord(Origin("record", number + 1, file.path), problem, values.excerpt)


class _Structure(Exception):
    """Something stands between records that may not stand there."""


class _Values:
    """The bytes of each value, one after the other; a long one as an open temporary file.

    Args:
        blocks: the bytes of the file.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = b""
        self._at = 0

    @property
    def excerpt(self) -> bytes:
        """Bytes that stand where reading stopped."""
        return self._held[self._at : self._at + 200]

    def __iter__(self) -> Iterator[bytes | IO[bytes]]:
        mark = self._next()
        if self._held.startswith(codecs.BOM_UTF8, self._at):
            self._at += len(codecs.BOM_UTF8)
            mark = self._next()
        if mark != b"[":
            while mark:
                yield self._value()
                mark = self._next()
            return
        self._at += 1
        mark = self._next()
        while mark != b"]":
            yield self._value()
            mark = self._next()
            if mark not in (b",", b"]"):
                raise _Structure(f"',' or ']' must follow, but {mark!r} does" if mark else "the array does not end")
            if mark == b",":
                self._at += 1
                mark = self._next()
                if mark == b"]":
                    raise _Structure("a record must follow ',', but ']' does")
        self._at += 1
        if mark := self._next():
            raise _Structure(f"nothing may follow the array, but {mark!r} does")

    def _next(self) -> bytes:
        """Go to the next byte that is not blank, and return it; nothing at the end."""
        while True:
            found = _BLANK.match(self._held, self._at)
            assert found is not None, "no blank is one, too"
            self._at = found.end()
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def _more(self) -> bool:
        block = next(self._blocks, b"")
        self._held = self._held[self._at :] + block
        self._at = 0
        return bool(block)

    def _value(self) -> bytes | IO[bytes]:
        """Return the value that begins here, to the bracket that closes it, and go behind it."""
        first = self._held[self._at : self._at + 1]
        if first not in (b'"', b"[", b"{"):
            return self._scalar()
        depth, is_string, at = 0, False, self._at
        spool: IO[bytes] | None = None
        while True:
            at, depth, is_string, is_whole = self._scanned(at, depth, is_string)
            if is_whole:
                break
            scanned = at - self._at
            if scanned > LONG_BYTES:
                # It is closed by who takes it.
                spool = spool or tempfile.TemporaryFile()  # noqa: SIM115
                spool.write(self._held[self._at : at])
                self._at, scanned = at, 0
            if not self._more():
                raise _Structure("the record does not end")
            at = scanned
        value, self._at = self._held[self._at : at], at
        if spool is None:
            return value
        spool.write(value)
        return spool

    def _scanned(self, at: int, depth: int, is_string: bool) -> tuple[int, int, bool, bool]:
        """Go on in a value as far as its bytes are here.

        Returns:
            The place, how many brackets are open, whether it is in a string, and whether the value is whole.
        """
        held = self._held
        while True:
            if is_string:
                inside = _IN_STRING.match(held, at)
                assert inside is not None, "no character is a string, too"
                at = inside.end()
                if held[at : at + 1] != b'"':
                    return at, depth, True, False
                at, is_string = at + 1, False
            else:
                mark = _MARK.search(held, at)
                if mark is None:
                    return len(held), depth, False, False
                at = mark.end()
                if mark[0] == b'"':
                    is_string = True
                    continue
                depth += 1 if mark[0] in b"[{" else -1
            if depth <= 0:
                return at, depth, False, True

    def _scalar(self) -> bytes:
        while True:
            found = _SCALAR.match(self._held, self._at)
            assert found is not None, "it may be empty"
            if found.end() < len(self._held) or not self._more():
                break
        found = _SCALAR.match(self._held, self._at)
        assert found is not None, "it may be empty"
        if found.end() == self._at:
            raise _Structure(f"a record must follow, but {self._held[self._at : self._at + 1]!r} does")
        self._at = found.end()
        return found[0]
