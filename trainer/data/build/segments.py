"""A document divided into pieces of one part, and a long piece into segments that can be encoded one by one. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from trainer.data.split import Fractions, parts_of, utf8

SEGMENT_CHARACTERS = 1 << 16
"""Characters from which on a piece is cut where that changes no token."""
LONGEST_CHARACTERS = 16 << 20
"""Characters at which a piece is cut in any case: a document as long as that is rare, and its memory must have an end."""
_WINDOW = 256
"""Characters on either side of a cut whose tokens are compared with and without it."""
_SEARCHED = 32 << 10
_TRIES = 8
IsSafe = Callable[[str, str], bool]
"""Texts before and behind a cut -> whether their tokens are those of the two together."""


@dataclass(frozen=True)
class Segment:
    """A text that is encoded at once: a piece of a document, or a part of a long piece."""

    part: int
    """Place of the part in `token_manifest.PARTS`."""
    text: str
    text_bytes: int
    """Bytes of the text in UTF-8."""
    ends: bool
    """True if the piece ends with it."""


def segments(
    chunks: Iterable[str], fractions: Fractions, is_safe: IsSafe, note: Callable[[bytes], object] | None = None
) -> Iterator[Segment]:
    """Yield the segments of a document in order. Memory does not grow with the document.

    Args:
        chunks: the document.
        fractions: what is held out.
        is_safe: tells whether a cut changes no token.
        note: is handed the document in UTF-8, part by part; None: nobody asks.
    """
    held: list[str] = []
    part, length, size, searched = -1, 0, 0, SEGMENT_CHARACTERS
    for text in parts_of(chunks):
        content = utf8(text)
        if note is not None:
            note(content)
        its = fractions.part_of(content)
        if held and its != part:
            yield Segment(part, "".join(held), size, ends=True)
            held, length, size, searched = [], 0, 0, SEGMENT_CHARACTERS
        held.append(text)
        part, length, size = its, length + len(text), size + len(content)
        if length > searched + 2 * _WINDOW:
            whole = "".join(held)
            cut = _cut(whole, is_safe) or (length if length >= LONGEST_CHARACTERS else None)
            if cut is None:
                held, searched = [whole], length + SEGMENT_CHARACTERS
                continue
            rest = whole[cut:]
            left = len(utf8(rest))
            yield Segment(part, whole[:cut], size - left, ends=False)
            held, length, size, searched = [rest], len(rest), left, SEGMENT_CHARACTERS
    yield Segment(part, "".join(held), size, ends=True)


def _cut(text: str, is_safe: IsSafe) -> int | None:
    """Return the last place near the end of a text at which a cut changes no token; None if none was found."""
    for place in _places(text):
        if is_safe(text[max(0, place - _WINDOW) : place], text[place : place + _WINDOW]):
            return place
    return None


def _places(text: str) -> Iterator[int]:
    """Yield places for a cut: behind the last lines, then before the last words."""
    first, last = max(1, len(text) - _SEARCHED), len(text) - _WINDOW
    for mark, behind in (("\n", 1), (" ", 0)):
        place = last
        for _ in range(_TRIES):
            place = text.rfind(mark, first, place)
            if place < 0:
                break
            yield place + behind
