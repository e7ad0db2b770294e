"""The choice of the text that is held out for evaluation, by the text alone: run and order do not matter. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

PART_CHARACTERS = 8192
"""Characters in a part of a longer document. Parts are decided one by one, or a corpus that is one file would be all
training or all evaluation."""
TRAIN_PART, VALIDATION_PART, TEST_PART = range(3)
"""Places in `token_manifest.PARTS`."""
_RANGE = 1 << 64


@dataclass(frozen=True)
class Fractions:
    """Shares of the text that are not trained on, at the two ends of the hash's range: neither moves the other."""

    validation: float
    test: float = 0.0

    def part_of(self, content: bytes) -> int:
        """Return the part of a text, given in UTF-8: decided by its hash, so that copies stay together."""
        place = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        if place < self.validation * _RANGE:
            return VALIDATION_PART
        return TEST_PART if place >= (1.0 - self.test) * _RANGE else TRAIN_PART


def is_held_out(text: str, fraction: float) -> bool:
    """Return whether a text is for validation: decided by its hash, so that copies stay together."""
    return Fractions(fraction).part_of(utf8(text)) == VALIDATION_PART


def utf8(text: str) -> bytes:
    """Return a text in UTF-8, with `?` for lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", errors="replace")


def split_document(text: str, fraction: float) -> Iterator[tuple[bool, str]]:
    """Yield (True if held out, text) for a document: once, or for each run of parts with the same decision.

    The pieces together are the document. Parts end with a line where they can.
    """
    for held_out, parts in groupby(parts_of((text,)), lambda part: is_held_out(part, fraction)):
        yield held_out, "".join(parts)


def parts_of(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the parts of a document, which is given in chunks of any size: the parts do not depend on them."""
    held, start = "", 0
    for chunk in chunks:
        held, start = held[start:] + chunk, 0
        while len(held) - start > PART_CHARACTERS:
            line_end = held.rfind("\n", start, start + PART_CHARACTERS) + 1
            end = line_end or start + PART_CHARACTERS
            yield held[start:end]
            start = end
    yield held[start:]
