"""The samples at the places of a stream, and the sequences that a rank makes of them. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Picks(NamedTuple):
    """The samples at consecutive places of a stream, [n] each."""

    sources: npt.NDArray[np.int64]
    """Index of each sample's source in the segment's list."""
    samples: npt.NDArray[np.int64]
    """Index of each sample in its source."""


Order = Callable[[int, int], Picks]
"""(first, count) -> the samples at places `first` to `first + count - 1`."""


class Needs(NamedTuple):
    """The tokens that a rank reads: the first stage needs inputs, the last one labels, those between none."""

    ids: bool = True
    labels: bool = True


class Rows(NamedTuple):
    """n sequences of S tokens."""

    ids: npt.NDArray[np.int32] | None
    """[n, S]; None on a rank that needs none."""
    labels: npt.NDArray[np.int32] | None
    """[n, S], the number that is ignored where nothing counts; None on a rank that needs none."""
    begins: npt.NDArray[np.bool_] | None
    """[n, S], true at the first token of a document, and of a sample; None: documents do not matter."""
    sources: npt.NDArray[np.int64]
    """[n]."""
    counted: npt.NDArray[np.int64]
    """[n], labels that count."""


class Samples(Protocol):
    """The samples of one source, of `seq_length` tokens each."""

    seq_length: int

    def __len__(self) -> int:
        """Return the number of samples."""

    def rows(self, index: int, needs: Needs) -> Rows:
        """Return one sample as a sequence, its source 0.

        Raises:
            IndexError: there is no such sample.
        """
