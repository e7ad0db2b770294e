"""Fixed-length samples of memory-mapped files of tokens, and the endless stream that a run reads. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.packing import BEGINS, counted_labels, labels_of
from trainer.data.picks import EVERYTHING, NOTHING, ONE_SOURCE, Needs, Order, Picks, Rows, Samples

MOST_SAMPLES = 256
"""Number of samples from which the mean length of documents is taken."""


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

    def rows(self, index: int, needs: Needs = EVERYTHING) -> Rows:
        """Return one sample. See `Samples`."""
        ids = labels = begins = counts = None
        if needs.ids or needs.labels:
            tokens = self.sample(index)
            ids = tokens[:-1] if needs.ids else None
            labels = tokens[1:] if needs.labels else None
        if self._boundaries is not None:
            start = _checked(index, self._length) * self.seq_length
            found = self._boundaries.begins(start, self.seq_length + 1)
            if self._boundaries.crossing_label is not None:
                counts = ~found[1:]
                if labels is not None:
                    labels = np.where(counts, labels, self._boundaries.crossing_label)
            if self._boundaries.is_told:
                begins = found[:-1]
                begins[0] = True
        return Rows(ids, labels, begins, counts, ONE_SOURCE)


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

    def rows(self, index: int, needs: Needs = EVERYTHING) -> Rows:
        """Return one sample. See `Samples`."""
        start = _checked(index, self._length) * self.seq_length
        here = slice(start, start + self.seq_length)
        marks = np.asarray(self._marks[here])
        ids = labels = None
        if needs.ids or needs.labels:
            ids = np.asarray(self._tokens[here], dtype=np.int64)
            labels = labels_of(ids, marks, self._ignored) if needs.labels else None
        begins = (marks & BEGINS) > 0
        return Rows(ids if needs.ids else None, labels, begins, counted_labels(marks), ONE_SOURCE)


def _mapped(path: Path, dtype: str) -> npt.NDArray[np.generic]:
    # numpy cannot map an empty file.
    empty = path.stat().st_size == 0
    return np.empty(0, dtype=dtype) if empty else np.memmap(path, dtype=dtype, mode="r")


def _checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"sample must be in [0, {length}), but is {index}")
    return index


class SampleStream:
    """The samples of sources one after the other in some order, as one endless stream of (input, label) pairs.

    A sequence is a stretch of the stream, wherever it begins and however long it is. So a run may change its batch size
    or its sequence length on the way: it goes on where it was, and no token is left out or repeated. As long as
    sequences are as long as samples and begin where samples do, each sequence is one sample.

    Args:
        sources: the samples of each source, L tokens each.
        order: gives the source and the sample at each place.
    """

    def __init__(self, sources: Sequence[Samples], order: Order) -> None:
        self.sources = tuple(sources)
        self._order = order
        self._length = self.sources[0].seq_length

    def picks(self, start: int, tokens: int) -> Picks:
        """Return the samples that the stretch of `tokens` tokens from `start` touches, in order."""
        first, last = start // self._length, (start + tokens - 1) // self._length
        return self._order(first, last - first + 1)

    def sequences(self, starts: npt.NDArray[np.int64], seq_length: int, needs: Needs = EVERYTHING) -> Rows:
        """Return the n sequences of S tokens that begin at `starts` [n]."""
        length = self._length
        first, last = starts // length, (starts + seq_length - 1) // length
        lowest = int(first.min())
        picks = self._order(lowest, int(last.max()) - lowest + 1)
        found = []
        for row, start in enumerate(starts):
            offset = int(start - first[row] * length)
            parts = []
            for place in range(first[row] - lowest, last[row] - lowest + 1):
                sample = self.sources[picks.sources[place]].rows(int(picks.samples[place]), needs)
                parts.append(sample._replace(sources=picks.sources[place]))
            found.append(_cut(parts, slice(offset, offset + seq_length)))
        return _stacked(found)


def _cut(samples: Sequence[Rows], inside: slice) -> Rows:
    """Return a stretch of samples that stand side by side."""
    joined = _joined(samples, np.concatenate)
    ids, labels, begins, counts = (None if one is None else one[inside] for one in joined)
    return Rows(ids, labels, begins, counts, samples[0].sources)


def _stacked(rows: Sequence[Rows]) -> Rows:
    """Return sequences of S tokens, [S] each, as the rows of one value."""
    ids, labels, begins, counts = _joined(rows, np.stack)
    return Rows(ids, labels, begins, counts, np.stack([one.sources for one in rows]))


def _joined(rows: Sequence[Rows], join: Callable[[list[Any]], Any]) -> list[Any]:
    """Return all fields of rows but their sources, each joined over the rows."""
    fields = zip(*((one.ids, one.labels, one.begins, one.counts) for one in rows), strict=True)
    return [None if arrays[0] is None else join(list(arrays)) for arrays in fields]


def attended_in(dataset: Samples) -> float | None:
    """Return how many tokens the document of a token has in its sample, in the mean of samples spread over the data.

    None if there is no sample. The samples say where documents begin.
    """
    places = range(0, len(dataset), max(1, len(dataset) // MOST_SAMPLES))
    squares = 0
    for index in places:
        flags = dataset.rows(index, NOTHING).begins
        assert flags is not None, "these samples say where documents begin"
        squares += int((np.diff(np.flatnonzero(flags), append=dataset.seq_length) ** 2).sum())
    return squares / (len(places) * dataset.seq_length) if places else None
