"""The number of documents that are copies of an earlier one, in bounded memory. No torch."""

from __future__ import annotations

import tempfile
from array import array
from contextlib import ExitStack
from itertools import pairwise
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

HELD = 1 << 24
"""Hashes that are held in memory, of 8 bytes each; more wait in buckets on the disk."""
BUCKETS = 256


class Copies(NamedTuple):
    """Copies among some documents."""

    documents: int
    """Number of documents that were compared."""
    copies: int
    """Number of them that are the same as an earlier one."""
    pairs: int
    """Number of pairs of them that are the same."""
    groups: int
    """Number of different documents that have copies."""

    @property
    def share(self) -> float:
        """Share of the documents that are copies."""
        return self.copies / max(1, self.documents)


class ExactDuplicates:
    """Counts the copies among documents by 8 bytes of hash each.

    Of 1e9 different documents, two have the same 8 bytes with a probability of 3 %, so that the count is off by one.

    Args:
        held: number of hashes that are held in memory.
    """

    def __init__(self, held: int = HELD) -> None:
        self._limit = held
        self._hashes = array("Q")
        self._files = ExitStack()
        self._buckets: list[IO[bytes]] = []

    def add(self, hash_: int) -> None:
        """Note a document by its hash, in [0, 2^64)."""
        self._hashes.append(hash_)
        if len(self._hashes) >= self._limit:
            self._spill()

    def copies(self) -> Copies:
        """Return the copies among the documents; nothing can be noted afterwards."""
        if not self._buckets:
            return _copies(np.array(self._hashes, dtype=np.uint64))
        self._spill()
        found = Copies(0, 0, 0, 0)
        with self._files:
            for bucket in self._buckets:
                bucket.seek(0)
                here = _copies(np.frombuffer(bucket.read(), dtype=np.uint64))
                found = Copies(*(one + other for one, other in zip(found, here, strict=True)))
        return found

    def _spill(self) -> None:
        if not self._buckets:
            self._buckets = [
                self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed by `copies`.
                for _ in range(BUCKETS)
            ]
        hashes = np.sort(np.array(self._hashes, dtype=np.uint64))
        self._hashes = array("Q")
        edges = np.searchsorted(hashes >> np.uint64(56), np.arange(BUCKETS + 1, dtype=np.uint64))
        for bucket, (first, last) in zip(self._buckets, pairwise(edges), strict=True):
            bucket.write(hashes[first:last].tobytes())


def _copies(hashes: npt.NDArray[np.uint64]) -> Copies:
    _, counts = np.unique(hashes, return_counts=True)
    pairs = int((counts * (counts - 1) // 2).sum())
    return Copies(len(hashes), len(hashes) - len(counts), pairs, int(np.count_nonzero(counts > 1)))
