"""The choice of the text that is held out for evaluation, by the text alone: run and order do not matter. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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


def utf8(text: str) -> bytes:
    """Return a text in UTF-8, with `?` for lone surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", errors="replace")


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
