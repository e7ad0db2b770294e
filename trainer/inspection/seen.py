"""A document as it was seen, and what it was seen in. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.token_manifest import Counts

Ids = npt.NDArray[np.integer[Any]]
BEGINNING = 1 << 20
"""Number of characters of a text that are held; of a longer one the beginning is."""


@dataclass(frozen=True)
class SeenDocument:
    """One document, or a piece of one where the rest was not read."""

    group: str
    """Name of the part or folder that it belongs to."""
    hash: int
    """Eight bytes of hash of its content."""
    is_whole: bool
    """True if all of it was read, so that its length is known."""
    begins: bool = True
    """True if its beginning was read: so each document is counted once."""
    tokens: int | None = None
    """Number of its tokens; None without a tokenizer."""
    text_bytes: int | None = None
    """Bytes of its text in UTF-8; None where only ids are known."""
    ids: Ids | None = None
    """Ids of it; of a text of more than `BEGINNING` characters, those of its beginning."""
    end_ids: Ids | None = None
    """Last ids, where `ids` are only its beginning and both are known."""
    text: str | None = None
    """Text of which it was read, at most `BEGINNING` characters from its beginning."""


@dataclass(frozen=True)
class Part:
    """One part of prepared tokens."""

    name: str
    files: int
    documents: int | None
    """None if only reading them tells."""
    tokens: int
    dtype: str


@dataclass(frozen=True)
class Facts:
    """Facts that are known before a document is read."""

    kind: str
    """Form of what was found, in words."""
    place: str
    """Path of it, as it is shown."""
    documents: int | None
    """Number of documents; None if only reading them tells."""
    tokens: int | None
    """Number of tokens; None if only reading them tells."""
    content_bytes: int | None
    """Bytes of the text: for prepared tokens those of the documents, for files their size. None if not known."""
    parts: tuple[Part, ...] = ()
    counts: Counts | None = None
    """Records that were read when the tokens were prepared, and what was left out."""
    tokenizer: str = "none"
    """The tokenizer in words."""
    vocab_size: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    """Further lines, by their names."""


class Source(Protocol):
    """Something that holds documents."""

    facts: Facts
    is_sampled: bool
    """True if the last pass did not see everything. Known when it has ended."""
    seen_share: float | None
    """Share of the whole that the last pass covered, to estimate by it what the whole holds; None: not known."""
    empty: int
    """Records of the last pass that hold no text."""

    def documents(self, everything: bool, seed: int) -> Iterator[SeenDocument]:
        """Yield documents: all of them where they are few or all are wanted, otherwise a random sample, in order.

        Raises:
            DataError: the source cannot be read.
        """

    def faults(self) -> Sequence[str]:
        """Return what the last pass could not read, a line each, at most `MOST_FAULTS`."""

    def fault_count(self) -> int:
        """Return how many records the last pass could not read."""


MOST_FAULTS = 3
