"""Examples side by side in sequences of one length, and the marks by which they are told apart again. No torch.

Beside the ids of a sequence lies a byte for each: `COUNTS` if the token is learned, `BEGINS` if it is the first of an
example or of the padding behind the last one. Labels and documents follow from these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trainer.data.answers import Answered

COUNTS, BEGINS = 1, 2
OPEN_SEQUENCES = 64
"""Largest number of sequences that wait for an example which fits; more would fill them a little better."""
Ids = npt.NDArray[np.int64]
Marks = npt.NDArray[np.uint8]


@dataclass
class _Open:
    """A sequence with room left."""

    ids: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def add(self, example: Answered) -> None:
        """Put an example behind those that are there. Its first token follows nothing, so nothing predicts it."""
        marks = [COUNTS * counts for counts in example.counted]
        marks[0] = BEGINS
        self.ids += example.ids
        self.marks += marks


class Packer:
    """Put examples into sequences: each into the fullest open one that it fits into. No example is divided.

    Args:
        length: tokens of a sequence.
        filler: id behind the last example of a sequence; it counts for nothing.
    """

    def __init__(self, length: int, filler: int) -> None:
        self._length = length
        self._filler = filler
        self._open: list[_Open] = []

    def add(self, example: Answered) -> Iterator[tuple[Ids, Marks]]:
        """Take an example of 1 to `length` tokens, and yield ids and marks of the sequences that are finished.

        Raises:
            ValueError: it is empty or too long.
        """
        size = len(example.ids)
        if not 1 <= size <= self._length:
            raise ValueError(f"an example must have 1 to {self._length} tokens, but has {size}")
        fitting = [one for one in self._open if len(one.ids) + size <= self._length]
        if fitting:
            best = max(fitting, key=lambda one: len(one.ids))
        else:
            best = _Open()
            self._open.append(best)
        best.add(example)
        if len(best.ids) == self._length or len(self._open) > OPEN_SEQUENCES:
            fullest = max(self._open, key=lambda one: len(one.ids))
            self._open.remove(fullest)
            yield self._whole(fullest)

    def rest(self) -> Iterator[tuple[Ids, Marks]]:
        """Yield ids and marks of the sequences that are left, the oldest first."""
        while self._open:
            yield self._whole(self._open.pop(0))

    def _whole(self, one: _Open) -> tuple[Ids, Marks]:
        missing = self._length - len(one.ids)
        ids = [*one.ids, *[self._filler] * missing]
        marks = [*one.marks, *[BEGINS, *[0] * missing][:missing]]
        return np.array(ids, dtype=np.int64), np.array(marks, dtype=np.uint8)


def counted_labels(marks: Marks) -> npt.NDArray[np.bool_]:
    """Return at which tokens of a sequence the label counts: where the next token is of the example, and learned."""
    counts = np.zeros(len(marks), dtype=np.bool_)
    counts[:-1] = (marks[1:] & COUNTS) > 0
    return counts


def labels_of(ids: Ids, marks: Marks, ignored: int) -> Ids:
    """Return the label of each token of a sequence: the next one of its example, where that counts, or `ignored`."""
    labels = np.full_like(ids, ignored)
    counts = counted_labels(marks)
    labels[counts] = ids[1:][counts[:-1]]
    return labels
