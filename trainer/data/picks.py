"""The samples at the places of a stream, and the sequences that a rank makes of them. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Picks(NamedTuple):
    """The samples at consecutive places of a stream, [n] each."""

    sources: npt.NDArray[np.int64]
    """Index of each sample's source in the segment's list."""
    samples: npt.NDArray[np.int64]
    """Index of each sample in its source."""


Order = Callable[[int, int], Picks]
"""(first, count) -> the samples at places `first` to `first + count - 1`."""


def of_one_source(samples: Callable[[int, int], npt.NDArray[np.int64]]) -> Order:
    """Return the order of a stream whose only source has `samples(first, count)`, [count], at its places."""

    def order(first: int, count: int) -> Picks:
        return Picks(np.zeros(count, dtype=np.int64), samples(first, count))

    return order


class Needs(NamedTuple):
    """The tokens that a rank reads: the first stage needs inputs, the last one labels, those between none."""

    ids: bool = True
    labels: bool = True


EVERYTHING = Needs()
"""Needs of whoever reads whole sequences."""
NOTHING = Needs(ids=False, labels=False)
"""Needs of whoever asks only where documents begin, and what counts."""


class Rows(NamedTuple):
    """n sequences of S tokens, or one sample of them, where n is left out."""

    ids: Ids | None
    """[n, S]; None on a rank that needs none."""
    labels: Ids | None
    """[n, S], the number that is ignored where nothing counts; None on a rank that needs none."""
    begins: Flags | None
    """[n, S], true at the first token of a document, and of a sample; None: documents do not matter."""
    counts: Flags | None
    """[n, S], true where the label counts; None: all do."""
    sources: npt.NDArray[np.int64]
    """[n]: index of the source of each sequence's first token."""


class Samples(Protocol):
    """The samples of one source, of `seq_length` tokens each. All tell documents and counts, or none does."""

    seq_length: int

    def __len__(self) -> int:
        """Return the number of samples."""

    def rows(self, index: int, needs: Needs = EVERYTHING) -> Rows:
        """Return one sample, [S] each. Its source is 0.

        Raises:
            IndexError: there is no such sample.
        """


ONE_SOURCE = np.zeros((), dtype=np.int64)
"""Source of a sample that was asked of its source."""
