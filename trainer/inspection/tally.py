"""Sums over documents while they pass, in bounded memory. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.inspection.exact_duplicates import ExactDuplicates
from trainer.inspection.near_duplicates import MOST_ELEMENTS, Elements, words_of
from trainer.inspection.seen import SeenDocument

MOST_COMPARED = 4096
"""Documents that are compared with each other for near-duplicates."""
SHOWN_CHARACTERS = 4096
SHOWN_IDS = 768
END_IDS = 64
"""Characters and ids that are kept of a document that is shown, and ids of its end."""
MOST_IDS = 1 << 22
"""Ids from 0 on whose counts are kept if no vocabulary is known."""
MOST_RATIOS = 1 << 14
MOST_GROUPS = 1 << 12
OTHERS = "others"
Thing = TypeVar("Thing")
_COUNTED_AT_ONCE = 1 << 18


class Reservoir(Generic[Thing]):
    """A random sample of as many things as it holds, each with the same chance (J. Vitter's algorithm R, 1985).

    Args:
        size: number of things.
        seed: seed of the draws.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._draws = np.random.default_rng(seed)
        self._size = size
        self._seen = 0
        self._held: dict[int, tuple[int, Thing]] = {}

    def offer(self, make: Callable[[], Thing]) -> None:
        """Take the next thing, which is made only if it is kept."""
        self._seen += 1
        place = self._seen - 1
        if place >= self._size:
            place = int(self._draws.integers(self._seen))
        if place < self._size:
            self._held[place] = (self._seen, make())

    def things(self) -> list[Thing]:
        """Return what is held, in the order in which it came."""
        return [thing for _, thing in sorted(self._held.values(), key=lambda entry: entry[0])]


class Tally:
    """The findings of a pass over documents.

    Args:
        in_tokens: lengths are in tokens, and otherwise in bytes.
        vocab_size: number of ids, or None if no vocabulary is known.
        shown: number of documents that are kept to be shown.
        seed: seed of what is drawn.
    """

    def __init__(self, in_tokens: bool, vocab_size: int | None, shown: int, seed: int) -> None:
        self.in_tokens = in_tokens
        self.documents = 0
        self.pieces = 0
        self.begun = 0
        self.tokens = 0
        self.text_bytes = 0
        self.lengths: Counter[int] = Counter()
        self.groups: Counter[str] = Counter()
        self.outside = 0
        """Ids that the vocabulary does not have."""
        self.largest_id = -1
        self.exact = ExactDuplicates()
        self._is_known = vocab_size is not None
        self._limit = MOST_IDS if vocab_size is None else vocab_size
        self._counts: npt.NDArray[np.int64] = np.zeros(min(self._limit, 1 << 16), dtype=np.int64)
        self._waiting: list[npt.NDArray[np.integer[Any]]] = []
        self._waiting_ids = 0
        self._shown: Reservoir[SeenDocument] = Reservoir(shown, seed)
        self._compared: Reservoir[tuple[int, Elements]] = Reservoir(MOST_COMPARED, seed + 1)
        self._ratios: Reservoir[float] = Reservoir(MOST_RATIOS, seed + 2)

    def add(self, document: SeenDocument) -> None:
        """Take a document."""
        self.documents += document.is_whole
        self.pieces += not document.is_whole
        self.begun += document.begins
        self.tokens += document.tokens or 0
        self.text_bytes += document.text_bytes or 0
        size = int((document.tokens if self.in_tokens else document.text_bytes) or 0)
        group = document.group
        self.groups[group if group in self.groups or len(self.groups) < MOST_GROUPS else OTHERS] += size
        if document.is_whole:
            self.lengths[size] += 1
            self.exact.add(document.hash)
        if document.ids is not None:
            self._count(document.ids)
        self._keep(document)

    def id_counts(self) -> npt.NDArray[np.int64]:
        """Return how often each id was seen: of the vocabulary, or up to the largest one."""
        self._count_waiting()
        size = self._limit if self._is_known else min(self.largest_id + 1, self._limit)
        found = np.zeros(size, dtype=np.int64)
        common = min(len(found), len(self._counts))
        found[:common] = self._counts[:common]
        return found

    def shown(self) -> list[SeenDocument]:
        """Return the documents that are to be shown."""
        return self._shown.things()

    def compared(self) -> list[tuple[int, Elements]]:
        """Return hash and words or ids of the documents that are to be compared."""
        return self._compared.things()

    def ratios(self) -> list[float]:
        """Return tokens a byte of some documents; none where both are not known."""
        return self._ratios.things()

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of the documents does not exceed."""
        wanted, held = share * self.lengths.total(), 0
        for length in sorted(self.lengths):
            held += self.lengths[length]
            if held >= wanted:
                return length
        return 0

    def most_frequent(self, count: int) -> list[int]:
        """Return the ids that were seen most often, the first one most."""
        counts = self.id_counts()
        found = np.flatnonzero(counts)
        return [int(id_) for id_ in found[np.argsort(-counts[found], kind="stable")][:count]]

    def _count(self, ids: npt.NDArray[np.integer[Any]]) -> None:
        for first in range(0, len(ids), _COUNTED_AT_ONCE):
            block = ids[first : first + _COUNTED_AT_ONCE]
            self._waiting.append(block)
            self._waiting_ids += len(block)
            if self._waiting_ids >= _COUNTED_AT_ONCE:
                self._count_waiting()

    def _count_waiting(self) -> None:
        if not self._waiting:
            return
        ids = np.concatenate(self._waiting).astype(np.int64, copy=False)
        self._waiting.clear()
        self._waiting_ids = 0
        self.largest_id = max(self.largest_id, int(ids.max(initial=-1)))
        inside = ids[(ids >= 0) & (ids < self._limit)]
        self.outside += len(ids) - len(inside)
        counts = np.bincount(inside)
        if len(counts) > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(len(counts) - len(self._counts), dtype=np.int64)])
        self._counts[: len(counts)] += counts

    def _keep(self, document: SeenDocument) -> None:
        self._shown.offer(lambda: _shown_parts(document))
        self._compared.offer(lambda: (document.hash, _elements(document)))
        if document.tokens and document.text_bytes:
            ratio = document.tokens / document.text_bytes
            self._ratios.offer(lambda: ratio)


def _shown_parts(document: SeenDocument) -> SeenDocument:
    """Return a document with as much of it as is shown: arrays of the whole one would stay in memory."""
    text = None if document.text is None else document.text[:SHOWN_CHARACTERS]
    if document.ids is None or len(document.ids) <= SHOWN_IDS + END_IDS:
        return replace(document, text=text, ids=None if document.ids is None else np.array(document.ids))
    return replace(
        document, text=text, ids=np.array(document.ids[:SHOWN_IDS]), end_ids=np.array(document.ids[-END_IDS:])
    )


def _elements(document: SeenDocument) -> Elements:
    if document.text is not None:
        return words_of(document.text)
    assert document.ids is not None, "a document has a text or ids"
    return document.ids[:MOST_ELEMENTS].astype(np.uint64)


def shares(groups: Sequence[tuple[str, int]], most: int) -> list[tuple[str, float]]:
    """Return the share of each group, the largest first, and that of all behind the first `most` as one."""
    total = max(1, sum(size for _, size in groups))
    ordered = sorted(groups, key=lambda group: (-group[1], group[0]))
    first = [(name, size / total) for name, size in ordered[:most]]
    rest = sum(size for _, size in ordered[most:])
    return [*first, (f"{len(ordered) - most} more", rest / total)] if rest else first
