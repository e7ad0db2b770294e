"""Fixed-length samples of memory-mapped files of tokens, and the endless stream that a run reads. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.packing import BEGINS, labels_of

MOST_SAMPLES = 256
"""Number of samples from which the mean length of documents is taken."""


class Samples(Protocol):
    """Samples of `seq_length` tokens."""

    seq_length: int

    def __len__(self) -> int:
        """Return the number of samples."""

    def rows(self, index: int) -> npt.NDArray[np.int64]:
        """Return inputs and labels of a sample, [2, seq_length].

        If its documents do not see each other, a third row says by 1 where one begins; the first token does.

        Raises:
            IndexError: there is no such sample.
        """


class Boundaries:
    """The places at which documents of a stream of tokens end, mapped: as many bytes are read as a sample needs.

    Args:
        path: file of the number of tokens up to the end of each document, int64, rising.
        is_told: true if samples say where documents begin.
        crossing_label: label of a document's last token, instead of the next document's first; None: that one.
    """

    def __init__(self, path: Path, is_told: bool, crossing_label: int | None) -> None:
        self.is_told = is_told
        self.crossing_label = crossing_label
        self._ends = _mapped(path, "<i8")

    def begins(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Return at which of `count` tokens from `start` another document begins, `[count]`."""
        first, last = np.searchsorted(self._ends, np.array([start, start + count], dtype=np.int64))
        found = np.zeros(count, dtype=np.bool_)
        found[np.asarray(self._ends[first:last], dtype=np.int64) - start] = True
        return found


class TokenDataset:
    """Sample i holds tokens [i * S, (i + 1) * S]: S inputs and, shifted by one, S labels; each token is predicted once.

    Args:
        path: file of little-endian token ids.
        dtype: type of the ids in the file, uint16 or uint32.
        seq_length: S.
        max_samples: use only this many samples from the start.
        boundaries: where documents end; None: that does not matter.
    """

    def __init__(
        self,
        path: Path,
        dtype: str,
        seq_length: int,
        max_samples: int | None = None,
        boundaries: Boundaries | None = None,
    ) -> None:
        self.seq_length = seq_length
        self._boundaries = boundaries
        self._tokens = _mapped(path, dtype)
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
        start = _checked(index, self._length) * self.seq_length
        return np.asarray(self._tokens[start : start + self.seq_length + 1], dtype=np.int64)

    def rows(self, index: int) -> npt.NDArray[np.int64]:
        """Return inputs and labels of a sample, [2 or 3, seq_length]. See `Samples`."""
        tokens, ends = self.sample(index), self._boundaries
        if ends is None:
            return np.stack([tokens[:-1], tokens[1:]])
        begins = ends.begins(index * self.seq_length, self.seq_length + 1)
        rows = np.stack([tokens[:-1], tokens[1:], begins[:-1]])
        if ends.crossing_label is not None:
            rows[1, begins[1:]] = ends.crossing_label
        rows[2, 0] = 1
        return rows if ends.is_told else rows[:2]


class PackedDataset:
    """Sample i is a sequence of whole examples, of which no one attends to another, and in which answers count.

    Args:
        tokens: file of little-endian token ids, sequence after sequence.
        marks: file of a byte for each of them; see `packing`.
        dtype: type of the ids in the file, uint16 or uint32.
        seq_length: length of the sequences, in tokens.
        ignored: label of a token after which nothing counts.
        max_samples: use only this many samples from the start.
    """

    def __init__(
        self, tokens: Path, marks: Path, dtype: str, seq_length: int, ignored: int, max_samples: int | None = None
    ) -> None:
        self.seq_length = seq_length
        self._ignored = ignored
        self._tokens = _mapped(tokens, dtype)
        self._marks = _mapped(marks, "uint8")
        available = len(self._tokens) // seq_length
        self._length = available if max_samples is None else min(available, max_samples)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def rows(self, index: int) -> npt.NDArray[np.int64]:
        """Return inputs and labels of a sample, and where its examples begin, [3, seq_length]."""
        start = _checked(index, self._length) * self.seq_length
        here = slice(start, start + self.seq_length)
        ids, marks = np.asarray(self._tokens[here], dtype=np.int64), np.asarray(self._marks[here])
        return np.stack([ids, labels_of(ids, marks, self._ignored), (marks & BEGINS) > 0])


def _mapped(path: Path, dtype: str) -> npt.NDArray[np.generic]:
    # numpy cannot map an empty file.
    empty = path.stat().st_size == 0
    return np.empty(0, dtype=dtype) if empty else np.memmap(path, dtype=dtype, mode="r")


def _checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"sample must be in [0, {length}), but is {index}")
    return index


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

    def __init__(self, dataset: Samples, order: Order) -> None:
        self._dataset = dataset
        self._order = order

    def samples(self, start: int, tokens: int) -> npt.NDArray[np.int64]:
        """Return the indices of the samples that the stretch of `tokens` tokens from `start` touches, in order."""
        length = self._dataset.seq_length
        first, last = start // length, (start + tokens - 1) // length
        return self._order(first, last - first + 1)

    def sequences(self, starts: npt.NDArray[np.int64], seq_length: int) -> npt.NDArray[np.int64]:
        """Return inputs and labels of the sequences of S tokens that begin at `starts` [n], `[2, n, seq_length]`.

        Where documents do not see each other, a third row says by 1 where one begins: `[3, n, seq_length]`.
        """
        length = self._dataset.seq_length
        first, last = starts // length, (starts + seq_length - 1) // length
        lowest = int(first.min())
        samples = self._order(lowest, int(last.max()) - lowest + 1)
        found = []
        for row, start in enumerate(starts):
            here = samples[first[row] - lowest : last[row] - lowest + 1]
            rows = np.concatenate([self._dataset.rows(int(index)) for index in here], axis=1)
            inside = slice(start - first[row] * length, start - first[row] * length + seq_length)
            found.append(rows[:, inside])
        return np.stack(found, axis=1)


def attended_in(dataset: Samples) -> float | None:
    """Return how many tokens the document of a token has in its sample, in the mean of samples spread over the data.

    None if there is no sample. The samples say where documents begin.
    """
    places = range(0, len(dataset), max(1, len(dataset) // MOST_SAMPLES))
    squares = 0
    for index in places:
        begins = np.flatnonzero(dataset.rows(index)[2])
        squares += int((np.diff(begins, append=dataset.seq_length) ** 2).sum())
    return squares / (len(places) * dataset.seq_length) if places else None
