"""JSON values that are too long to be held twice: their bytes stay on disk, and a text in them is read in chunks."""

from __future__ import annotations

import json
import mmap
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from trainer.corpus.document import BadDocument, BadRecord, Origin

LONG_BYTES = 1 << 20
"""Bytes of a value from which on it is a long one."""
CHUNK_BYTES = 1 << 17
"""Bytes of a text that are decoded at once."""
_BLANK = re.compile(rb"[ \t\n\r]*+")
_INSIDE = re.compile(rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+')
"""Text between two quotes, or the beginning of it."""
_SCALAR = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?|true|false|null|NaN|-?Infinity")
_PIECE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[^\\]++", re.DOTALL
)
"""Pieces of a text: two escapes that are one character, another escape, or characters as they are."""
_PIECE_BYTES = 12
_SCANNED_BYTES = 1 << 20
"""Bytes of a text that are looked through at once."""
_GAPS = 64
"""Escapes that are looked at, from behind, for one with characters as they are in front of it."""
_CLOSING = {b"{": b"}", b"[": b"]"}


class LongValue:
    """A value of JSON that lies in a file.

    Args:
        content: the bytes of the file.
        first: the first byte of the value.
        end: the byte behind it.
    """

    def __init__(self, content: mmap.mmap, first: int, end: int) -> None:
        self._content = content
        self._first = first
        self._end = end

    @classmethod
    def checked(cls, content: mmap.mmap, first: int, end: int) -> LongValue:
        """Return the value between two bytes, without the blanks around it.

        Raises:
            ValueError: the bytes are no value of JSON.
        """
        begin = _after_blanks(content, first)
        stop = _value_end(content, begin)
        if _after_blanks(content, stop) < end:
            raise ValueError(f"Extra data: byte {stop - first}")
        return cls(content, begin, stop)

    @classmethod
    def of_file(cls, path: str, first: int, end: int) -> LongValue:
        """Return the value between two bytes of a file.

        Raises:
            OSError: the file cannot be read.
            ValueError: the bytes are no value of JSON.
        """
        with Path(path).open("rb") as file:
            return cls.checked(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), first, end)

    @classmethod
    def of_parts(cls, parts: Iterator[bytes]) -> LongValue:
        """Return the value whose bytes come in parts: they are put into a temporary file.

        Raises:
            OSError: the file cannot be written.
            ValueError: the bytes are no value of JSON.
        """
        with tempfile.TemporaryFile() as file:
            return cls.of_open(file, sum(file.write(part) for part in parts))

    @classmethod
    def of_open(cls, file: IO[bytes], size: int) -> LongValue:
        """Return the value in the first bytes of an open file, which may be closed then.

        Raises:
            ValueError: the bytes are no value of JSON.
        """
        file.flush()
        return cls.checked(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), 0, size)

    @property
    def is_text(self) -> bool:
        """True if the value is a string."""
        return self._content[self._first] == ord('"')

    def whole(self) -> Any:
        """Return the value, with all that is in it.

        Raises:
            ValueError: it is not UTF-8, or numbers are too long.
            RecursionError: it is nested too deeply.
        """
        return json.loads(self._content[self._first : self._end].decode("utf-8"))

    def opened(self, names: Collection[str]) -> Any:
        """Return an object as a dict, in which long values are `LongValue`; any other value as a whole.

        Args:
            names: fields whose values are wanted; those of others are None.

        Raises:
            ValueError: as `whole`.
            RecursionError: as `whole`.
        """
        if self._content[self._first] != ord("{"):
            return self.whole()
        held: dict[str, Any] = {}
        for name, first, end in _members(self._content, self._first):
            held[name] = None
            if name in names:
                value = LongValue(self._content, first, end)
                held[name] = value if end - first > LONG_BYTES else value.whole()
        return held

    def chunks(self, origin: Origin) -> Iterator[str]:
        """Yield the text of a string in chunks.

        Raises:
            BadDocument: it is not UTF-8.
        """
        at, end = self._first + 1, self._end - 1
        while at < end:
            cut = self._cut(at, end)
            try:
                yield json.loads(f'"{self._content[at:cut].decode("utf-8")}"')
            except UnicodeDecodeError as error:
                problem = f"data.files must be UTF-8, but {origin} is not; convert it, for example with iconv"
                raise BadDocument(BadRecord(origin, problem, self._content[at : at + 200])) from error
            at = cut
            _let_go(self._content, at)

    def _cut(self, at: int, end: int) -> int:
        """Return the end of the next chunk, in front of a whole character."""
        limit = at + CHUNK_BYTES
        if limit >= end:
            return end
        cut = limit
        for _ in range(_GAPS):
            escape = self._content.rfind(b"\\", max(at, cut - _PIECE_BYTES), cut)
            if escape < 0 and cut - at >= _PIECE_BYTES:
                return self._in_front_of_a_character(cut)
            if escape < 0:
                break
            cut = escape
        for piece in _PIECE.finditer(self._content, at, min(limit + _PIECE_BYTES, end)):
            if piece.end() >= limit:
                cut = piece.start()
                if self._content[cut] != ord("\\"):
                    cut = max(cut, self._in_front_of_a_character(limit))
                return cut if cut > at else piece.end()
        return end

    def _in_front_of_a_character(self, at: int) -> int:
        while self._content[at] & 0xC0 == 0x80:
            at -= 1
        return at


def _after_blanks(content: mmap.mmap, at: int) -> int:
    found = _BLANK.match(content, at)
    assert found is not None, "no blank is one, too"
    return found.end()


def _string_end(content: mmap.mmap, at: int) -> int:
    """Return the end of the string whose first quote is at a byte."""
    at += 1
    while True:
        limit = min(at + _SCANNED_BYTES, len(content))
        found = _INSIDE.match(content, at, limit)
        assert found is not None, "no character is a text, too"
        stop = found.end()
        if content[stop : stop + 1] == b'"':
            return stop + 1
        # An escape may lie across the limit.
        if limit == len(content) or stop + _PIECE_BYTES < limit:
            raise ValueError(f"Expecting a whole string: byte {stop}")
        at = stop
        _let_go(content, at)


def _let_go(content: mmap.mmap, at: int) -> None:
    """Tell the system that what is in front of a byte need not stay in memory: it is on disk."""
    if at >= mmap.PAGESIZE:
        content.madvise(mmap.MADV_DONTNEED, 0, at // mmap.PAGESIZE * mmap.PAGESIZE)


def _key(content: mmap.mmap, at: int) -> tuple[int, int, int]:
    """Return the first byte of a key, the one behind it, and the first one of its value."""
    first = _after_blanks(content, at)
    if content[first : first + 1] != b'"':
        raise ValueError(f"Expecting a name in double quotes: byte {first}")
    end = _string_end(content, first)
    colon = _after_blanks(content, end)
    if content[colon : colon + 1] != b":":
        raise ValueError(f"Expecting ':': byte {colon}")
    return first, end, _after_blanks(content, colon + 1)


def _members(content: mmap.mmap, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and end of each value of a valid object."""
    at = _after_blanks(content, at + 1)
    if content[at : at + 1] == b"}":
        return
    while True:
        first, end, value = _key(content, at)
        at = _value_end(content, value)
        yield json.loads(content[first:end].decode("utf-8", errors="replace")), value, at
        at = _after_blanks(content, at)
        if content[at : at + 1] != b",":
            return
        at += 1


def _value_end(content: mmap.mmap, at: int) -> int:
    """Return the end of the value that begins at a byte.

    Raises:
        ValueError: there is none.
    """
    open_ones: list[bytes] = []
    while True:
        mark = content[at : at + 1]
        if mark in _CLOSING:
            inner = _after_blanks(content, at + 1)
            if content[inner : inner + 1] != _CLOSING[mark]:
                open_ones.append(_CLOSING[mark])
                at = _key(content, inner)[2] if mark == b"{" else inner
                continue
            at = inner + 1
        elif mark == b'"':
            at = _string_end(content, at)
        else:
            found = _SCALAR.match(content, at)
            if found is None:
                raise ValueError(f"Expecting value: byte {at}")
            at = found.end()
        at = _closed(content, at, open_ones)
        if not open_ones:
            return at
        at = _key(content, at)[2] if open_ones[-1] == b"}" else _after_blanks(content, at)


def _closed(content: mmap.mmap, at: int, open_ones: list[bytes]) -> int:
    """Go over the ends of arrays and objects behind a value, and return the place of what follows the comma."""
    while open_ones:
        at = _after_blanks(content, at)
        mark = content[at : at + 1]
        at += 1
        if mark == b",":
            return at
        if mark != open_ones.pop():
            raise ValueError(f"Expecting ',' delimiter: byte {at - 1}")
    return at
