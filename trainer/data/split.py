"""The choice of the text that is held out for evaluation, by the text alone: run and order do not matter. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import groupby

PART_CHARACTERS = 8192
"""Characters in a part of a longer document. Parts are decided one by one, or a corpus that is one file would be all
training or all evaluation."""


def is_held_out(text: str, fraction: float) -> bool:
    """Return whether a text is for validation: decided by its hash, so that copies stay together."""
    digest = hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * (1 << 64)


def split_document(text: str, fraction: float) -> Iterator[tuple[bool, str]]:
    """Yield (True if held out, text) for a document: once, or for each run of parts with the same decision.

    The pieces together are the document. Parts end with a line where they can.
    """
    for held_out, parts in groupby(_parts(text), lambda part: is_held_out(part, fraction)):
        yield held_out, "".join(parts)


def _parts(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PART_CHARACTERS:
        line_end = text.rfind("\n", start, start + PART_CHARACTERS) + 1
        end = line_end or start + PART_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]
