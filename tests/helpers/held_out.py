"""The choice of what is held out, text by text: what a build must come to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from trainer.data.split import VALIDATION_PART, Fractions, parts_of, utf8


def is_held_out(text: str, fraction: float) -> bool:
    """Return whether a text is for validation: decided by its hash, so that copies stay together."""
    return Fractions(fraction).part_of(utf8(text)) == VALIDATION_PART


def split_document(text: str, fraction: float) -> Iterator[tuple[bool, str]]:
    """Yield (True if held out, text) for a document: once, or for each run of parts with the same decision.

    The pieces together are the document. Parts end with a line where they can.
    """
    for held_out, parts in groupby(parts_of((text,)), lambda part: is_held_out(part, fraction)):
        yield held_out, "".join(parts)
