"""Fixed-length samples of a memory-mapped file of tokens, and the endless stream that a run reads. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt


class TokenDataset:
    """Sample i holds tokens [i * S, (i + 1) * S]: S inputs and, shifted by one, S labels; each token is predicted once.

    Args:
        path: file of little-endian token ids.
        dtype: type of the ids in the file, uint16 or uint32.
        seq_length: S.
        max_samples: use only this many samples from the start.
    """

    def __init__(self, path: Path, dtype: str, seq_length: int, max_samples: int | None = None) -> None:
        self.seq_length = seq_length
        # numpy cannot map an empty file.
        empty = path.stat().st_size == 0
        self._tokens = np.empty(0, dtype=dtype) if empty else np.memmap(path, dtype=dtype, mode="r")
        available = max(0, (len(self._tokens) - 1) // seq_length)
        self._length = available if max_samples is None else min(available, max_samples)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def sample(self, index: int) -> npt.NDArray[np.int64]:
        """Return the tokens of a sample, [seq_length + 1].

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"sample must be in [0, {self._length}), but is {index}")
        start = index * self.seq_length
        return np.asarray(self._tokens[start : start + self.seq_length + 1], dtype=np.int64)


Order = Callable[[int, int], npt.NDArray[np.int64]]
"""(first, count) -> the samples at places `first` to `first + count - 1`, `[count]`."""


class SampleStream:
    """The samples of a data set one after the other in some order, as one endless stream of (input, label) pairs.

    A sequence is a stretch of the stream, wherever it begins and however long it is. So a run may change its batch size
    or its sequence length on the way: it goes on where it was, and no token is left out or repeated. As long as
    sequences are as long as samples and begin where samples do, each sequence is one sample.

    Args:
        dataset: the samples, L tokens each.
        order: gives the sample at each place.
    """

    def __init__(self, dataset: TokenDataset, order: Order) -> None:
        self._dataset = dataset
        self._order = order

    def samples(self, start: int, tokens: int) -> npt.NDArray[np.int64]:
        """Return the indices of the samples that the stretch of `tokens` tokens from `start` touches, in order."""
        length = self._dataset.seq_length
        first, last = start // length, (start + tokens - 1) // length
        return self._order(first, last - first + 1)

    def sequences(self, starts: npt.NDArray[np.int64], seq_length: int) -> npt.NDArray[np.int64]:
        """Return inputs and labels of the sequences of S tokens that begin at `starts` [n], `[2, n, seq_length]`."""
        length = self._dataset.seq_length
        first, last = starts // length, (starts + seq_length - 1) // length
        lowest = int(first.min())
        samples = self._order(lowest, int(last.max()) - lowest + 1)
        pairs = np.empty((2, len(starts), seq_length), dtype=np.int64)
        for row, start in enumerate(starts):
            here = samples[first[row] - lowest : last[row] - lowest + 1]
            tokens = np.stack([self._dataset.sample(int(index)) for index in here])
            inside = slice(start - first[row] * length, start - first[row] * length + seq_length)
            pairs[0, row] = tokens[:, :-1].reshape(-1)[inside]
            pairs[1, row] = tokens[:, 1:].reshape(-1)[inside]
        return pairs
