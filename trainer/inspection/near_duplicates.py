"""Documents that are nearly the same, estimated by MinHash and found by locality-sensitive hashing. No torch.

The resemblance of two documents is the share of their shingles that both have: |A and B| / |A or B|. The smallest value
of a random hash over the shingles of each is the same with just that probability (A. Broder, "On the resemblance and
containment of documents", 1997), so that the share of `HASHES` hashes whose smallest values agree estimates it.
Candidates are pairs that agree in all hashes of one of `BANDS` bands (P. Indyk and R. Motwani, 1998).
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Elements = npt.NDArray[np.uint64]

HASHES = 128
BANDS = 32
ROWS = HASHES // BANDS
"""Hashes of a band."""
RESEMBLES = 0.8
"""Resemblance from which on two documents are near-duplicates."""
MOST_ELEMENTS = 1024
"""Number of words or ids of a document, from its beginning, that are compared."""
WORDS, IDS = 5, 8
"""Consecutive words of a text, or ids, that make a shingle."""
_MOST_OF_A_BUCKET = 64
"""Documents of a bucket that are compared with its first one; more are compared only with their neighbours."""
_AT_ONCE = 1 << 16
"""Shingles that are hashed at once: what the processor's caches hold."""
_WORD = re.compile(r"\w+")
_ODD = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> Elements:
    """Return a number for each of the first `MOST_ELEMENTS` words of a text, whatever their case."""
    found = []
    for match in _WORD.finditer(text):
        found.append(zlib.crc32(match.group().lower().encode("utf-8", "replace")))
        if len(found) == MOST_ELEMENTS:
            break
    return np.array(found, dtype=np.uint64)


def shingles(elements: Elements, width: int) -> Elements:
    """Return a hash for each run of `width` consecutive elements, each once; all of them if there are fewer."""
    if len(elements) == 0:
        return elements
    width = min(width, len(elements))
    count = len(elements) - width + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for place in range(width):
        mixed = _mixed(mixed * _ODD + elements[place : place + count])
    return np.unique(mixed)


def signatures(shingled: Sequence[Elements], seed: int) -> npt.NDArray[np.uint32]:
    """Return the smallest value of each of `HASHES` hashes over the shingles of each document, [documents, HASHES].

    Args:
        shingled: the shingles of each document, at least one.
        seed: seed of the hashes.
    """
    draws = np.random.default_rng(seed)
    factors = draws.integers(0, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = draws.integers(0, 1 << 63, HASHES, dtype=np.uint64)
    found = np.empty((len(shingled), HASHES), dtype=np.uint32)
    first = 0
    while first < len(shingled):
        last, held = first, 0
        while last < len(shingled) and (last == first or held + len(shingled[last]) <= _AT_ONCE):
            held += len(shingled[last])
            last += 1
        joined = np.concatenate(shingled[first:last])
        starts = np.cumsum([0, *(len(one) for one in shingled[first : last - 1])])
        for number in range(HASHES):
            hashed = ((joined * factors[number] + offsets[number]) >> np.uint64(32)).astype(np.uint32)
            found[first:last, number] = np.minimum.reduceat(hashed, starts)
        first = last
    return found


def _mixed(values: Elements) -> Elements:
    """Return values whose bits all depend on all bits of the given ones: the finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class Pair(NamedTuple):
    """Two documents that resemble each other."""

    first: int
    second: int
    resemblance: float
    """Estimated."""


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicates among some documents of which no two are the same."""

    documents: int
    """Number of documents that were compared."""
    resembling: int
    """Number of them that resemble another one at least by `RESEMBLES`."""
    pairs: tuple[Pair, ...]
    """Pairs that were found, the most alike first."""

    @property
    def share(self) -> float:
        """Share of the documents that resemble another one."""
        return self.resembling / max(1, self.documents)

    @property
    def sampling_error(self) -> float:
        """Standard error of the share as that of a random sample."""
        return math.sqrt(self.share * (1 - self.share) / max(1, self.documents))


def resemblance_error(resemblance: float = RESEMBLES) -> float:
    """Return the standard error with which the resemblance of a pair is known."""
    return math.sqrt(resemblance * (1 - resemblance) / HASHES)


def found_with(resemblance: float = RESEMBLES) -> float:
    """Return the probability with which a pair of some resemblance is a candidate."""
    return float(1 - (1 - resemblance**ROWS) ** BANDS)


def near_duplicates(documents: Sequence[Elements], width: int, seed: int) -> NearDuplicates:
    """Compare documents.

    Args:
        documents: the words or ids of each, no two of them the same.
        width: elements of a shingle.
        seed: seed of the hashes.
    """
    shingled = [shingles(elements[:MOST_ELEMENTS], width) for elements in documents]
    kept = [index for index, found in enumerate(shingled) if len(found)]
    if not kept:
        return NearDuplicates(0, 0, ())
    signed = signatures([shingled[index] for index in kept], seed)
    pairs = []
    for first, second in sorted(_candidates(signed)):
        alike = float(np.mean(signed[first] == signed[second]))
        if alike >= RESEMBLES:
            pairs.append(Pair(kept[first], kept[second], alike))
    resembling = {index for pair in pairs for index in (pair.first, pair.second)}
    ordered = sorted(pairs, key=lambda pair: -pair.resemblance)
    return NearDuplicates(len(kept), len(resembling), tuple(ordered))


def _candidates(signed: npt.NDArray[np.uint32]) -> set[tuple[int, int]]:
    found: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = {}
        rows = np.ascontiguousarray(signed[:, band * ROWS : (band + 1) * ROWS])
        for index, row in enumerate(rows):
            buckets.setdefault(row.tobytes(), []).append(index)
        for members in buckets.values():
            found.update((members[0], other) for other in members[1:])
            if len(members) <= _MOST_OF_A_BUCKET:
                found.update((one, other) for at, one in enumerate(members) for other in members[at + 1 :])
            else:
                found.update(pairwise(members))
    return found
