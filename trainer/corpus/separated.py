"""The bytes of documents between separators, in a span of a file. Where documents are depends on the file alone."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import IO, NamedTuple

from trainer.corpus.units import Span

BLOCK_BYTES = 1 << 17
"""Bytes that are read at once: small beside what their tokens need."""
_LONGEST_REST = 3
"""Largest number of bytes of a character behind its first one."""


class State(Enum):
    """Relation of some bytes to what follows them."""

    more = "more"
    """Further bytes of their document follow in the span."""
    end = "end"
    """Their document ends with them."""
    open = "open"
    """The span ends with them, and their document does not."""


class Part(NamedTuple):
    """Some bytes of a document."""

    position: int
    """Place in the file."""
    held: bytes
    state: State
    continues: bool
    """True if the document began in front of the span."""


class Parts:
    """The parts of one document. They can be taken once.

    Args:
        first: the first one.
        following: the parts of the span behind it, also those of other documents.
    """

    def __init__(self, first: Part, following: Iterator[Part]) -> None:
        self._first: Part | None = first
        self._following = following
        self.state = State.more
        """Relation of the part taken last to what follows it."""

    def __iter__(self) -> Iterator[Part]:
        while self._first is not None or self.state is State.more:
            part = self._first or next(self._following, None)
            if part is None:
                # Reading has ended with an error.
                self.state = State.end
                return
            self._first, self.state = None, part.state
            yield part


def parts_of(content: IO[bytes], span: Span, size: int | None, separator: bytes) -> Iterator[Part]:
    """Yield the bytes of a span, document by document.

    The span begins and ends in front of a whole character of UTF-8. Bytes between its end and a separator that it cuts
    are of no document.

    Args:
        content: the file.
        span: its bytes.
        size: all bytes of the file; None if that is not known.
        separator: what stands between documents; nothing if the file is one document.
    """
    is_last = span.end is None or span.end == size
    stop = None if is_last else _whole_character(content, span.end or 0)
    start = _whole_character(content, span.first) if span.first else 0
    at = _before_overlaps(content, start, separator) if span.first else 0
    if span.first or stop is not None:
        content.seek(at)
    begin = 0 if span.first == 0 else -1
    held: Part | None = None
    for position, block, ends in _between(content, at, separator):
        if stop is not None and position >= stop:
            is_over = position == stop and ends and not block
            if held is not None:
                yield held._replace(state=State.end if is_over else State.open)
            return
        block, cut = (block, False) if stop is None else (block[: stop - position], position + len(block) > stop)
        if held is not None:
            yield held
            held = None
        if position + len(block) > start or (position == start == begin):
            inside = max(position, start)
            state = State.open if cut else State.end if ends else State.more
            part = Part(inside, block[inside - position :], state, begin < start)
            if state is State.more:
                held = part
            else:
                yield part
        if cut:
            return
        if ends:
            begin = position + len(block) + len(separator)


def _between(content: IO[bytes], at: int, separator: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (place, bytes, True if a document ends with them) from a place of a file on."""
    held = b""
    while block := content.read(BLOCK_BYTES):
        held += block
        first = 0
        while separator and (found := held.find(separator, first)) >= 0:
            yield at + first, held[first:found], True
            first = found + len(separator)
        # The bytes at the end may be the first ones of a separator.
        kept = max(first, len(held) - max(0, len(separator) - 1))
        if kept > first:
            yield at + first, held[first:kept], False
        at, held = at + kept, held[kept:]
    yield at, held, True


def _before_overlaps(content: IO[bytes], position: int, separator: bytes) -> int:
    """Return a place that no separator lies across, in front of one that ends at a position or lies across it.

    Separators are counted from the start of a file, and one may overlap itself: of three line ends, the first two are
    one, if two are.
    """
    reach = len(separator)
    while separator:
        low = max(0, position - reach)
        content.seek(low)
        across = content.read(position - low + len(separator) - 1).find(separator)
        if across < 0 or low + across >= position:
            break
        position = low + across
        # From here on one that ends there is not looked for.
        reach = len(separator) - 1
    return position


def _whole_character(content: IO[bytes], position: int) -> int:
    """Return the place of the first character that begins at a byte or behind it."""
    content.seek(position)
    following = content.read(_LONGEST_REST)
    return position + next((index for index, byte in enumerate(following) if byte & 0xC0 != 0x80), len(following))
