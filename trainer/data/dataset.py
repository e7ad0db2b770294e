"""Fixed-length samples of shards of tokens, and the endless stream that a run reads. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data.packing import BEGINS, counted_labels, labels_of
from trainer.data.picks import EVERYTHING, NOTHING, ONE_SOURCE, Needs, Order, Picks, Rows, Samples
from trainer.data.shard_set import ShardSet
from trainer.data.stream_plan import StreamPlan

MOST_SAMPLES = 256
"""Number of samples from which the mean length of documents is taken."""


class Boundaries(NamedTuple):
    """Treatment of the places at which documents begin, in samples."""

    is_told: bool
    """True if samples say where documents begin."""
    crossing_label: int | None
    """Label of a document's last token, instead of the next document's first; None: that one."""


class TokenDataset:
    """Sample i holds tokens [i * S, (i + 1) * S]: S inputs and, shifted by one, S labels; each token is predicted once.

    Args:
        shards: the tokens.
        seq_length: S.
        max_samples: use only this many samples from the start.
        boundaries: what the ends of documents mean; None: nothing.
    """

    def __init__(
        self,
        shards: ShardSet,
        seq_length: int,
        max_samples: int | None = None,
        boundaries: Boundaries | None = None,
    ) -> None:
        self.seq_length = seq_length
        self._boundaries = boundaries
        self._shards = shards
        available = max(0, (len(shards) - 1) // seq_length)
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
        return self._shards.tokens(start, self.seq_length + 1).astype(np.int64)

    def rows(self, index: int, needs: Needs = EVERYTHING) -> Rows:
        """Return one sample. See `Samples`."""
        ids = labels = begins = counts = None
        if needs.ids or needs.labels:
            tokens = self.sample(index)
            ids = tokens[:-1] if needs.ids else None
            labels = tokens[1:] if needs.labels else None
        if self._boundaries is not None:
            start = _checked(index, self._length) * self.seq_length
            found = self._shards.begins(start, self.seq_length + 1)
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
        shards: the sequences, one behind the other, with a mark for each token; see `packing`.
        seq_length: length of the sequences, in tokens.
        ignored: label of a token after which nothing counts.
        max_samples: use only this many samples from the start.
    """

    def __init__(self, shards: ShardSet, seq_length: int, ignored: int, max_samples: int | None = None) -> None:
        self.seq_length = seq_length
        self._ignored = ignored
        self._shards = shards
        available = len(shards) // seq_length
        self._length = available if max_samples is None else min(available, max_samples)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def rows(self, index: int, needs: Needs = EVERYTHING) -> Rows:
        """Return one sample. See `Samples`."""
        start = _checked(index, self._length) * self.seq_length
        marks = self._shards.marks(start, self.seq_length)
        ids = labels = None
        if needs.ids or needs.labels:
            ids = self._shards.tokens(start, self.seq_length).astype(np.int64)
            labels = labels_of(ids, marks, self._ignored) if needs.labels else None
        begins = (marks & BEGINS) > 0
        return Rows(ids if needs.ids else None, labels, begins, counted_labels(marks), ONE_SOURCE)


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
        names: names of the sources.
        plan: the plan that the order follows; None: it follows none.
    """

    def __init__(
        self,
        sources: Sequence[Samples],
        order: Order,
        names: Sequence[str] = ("data",),
        plan: StreamPlan | None = None,
    ) -> None:
        self.plan = plan
        self.sources = tuple(sources)
        self.names = tuple(names)
        self._order = order
        self._length = self.sources[0].seq_length

    def picks(self, start: int, tokens: int) -> Picks:
        """Return the samples that the stretch of `tokens` tokens from `start` touches, in order."""
        first, last = start // self._length, (start + tokens - 1) // self._length
        return self._order(first, last - first + 1)

    def named(self, start: int, tokens: int) -> list[int | str]:
        """Return the same samples as people read them: their indices, of several sources each behind its name."""
        sources, samples = self.picks(start, tokens)
        if len(self.names) == 1:
            return list(map(int, samples))
        return [f"{self.names[source]}:{sample}" for source, sample in zip(sources, samples, strict=True)]

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
