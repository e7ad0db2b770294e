"""The elements of one of our tensors in tensors of other names: permutations, which can be inverted.

A layout moves no values itself. It pairs views of both sides that hold the same elements in the same order, so one
description reads and writes, and works on the arrays of any library that has `reshape`, `swapaxes` and slices: torch
and numpy alike. Only dimensions are split by `reshape`, which never copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
Array = Any
"""A tensor of torch, or an array of numpy."""
Pair = tuple[Array, Array]
"""Views of our side and of theirs, equal in shape."""


@dataclass(frozen=True)
class Same:
    """The same shape and order."""

    def shape(self, ours: Shape) -> Shape:
        """Return the shape of theirs."""
        return ours

    def pairs(self, ours: Array, theirs: Array) -> Iterator[Pair]:
        """Yield views that together hold every element of both sides once."""
        yield ours, theirs


@dataclass(frozen=True)
class Transposed:
    """A matrix with inputs as rows, as GPT-2's Conv1D keeps it. Vectors stay as they are."""

    def shape(self, ours: Shape) -> Shape:
        """Return the shape of theirs."""
        return ours[::-1]

    def pairs(self, ours: Array, theirs: Array) -> Iterator[Pair]:
        """Yield views that together hold every element of both sides once."""
        yield ours, theirs.swapaxes(0, 1) if theirs.ndim == 2 else theirs


@dataclass(frozen=True)
class Grouped:
    """Rows of several kinds in turn, group by group, where ours are sorted by kind.

    GPT-NeoX and BLOOM have a group for each head, with one query, one key and one value; Falcon one for each key head,
    with all the queries that share it.
    """

    groups: int
    counts: tuple[int, ...]
    """Number of heads of each kind in a group."""
    head_dim: int
    """Rows of one head."""

    def shape(self, ours: Shape) -> Shape:
        """Return the shape of theirs."""
        return ours

    def pairs(self, ours: Array, theirs: Array) -> Iterator[Pair]:
        """Yield views that together hold every element of both sides once."""
        rest = tuple(ours.shape[1:])
        groups = theirs.reshape(self.groups, sum(self.counts), self.head_dim, *rest)
        row = head = 0
        for count in self.counts:
            rows = self.groups * count * self.head_dim
            kind = ours[row : row + rows].reshape(self.groups, count, self.head_dim, *rest)
            yield kind, groups[:, head : head + count]
            row, head = row + rows, head + count


@dataclass(frozen=True)
class Rotated:
    """Rows of rotary heads whose pairs lie side by side, where ours are half a rotation apart.

    Queries and keys get the same permutation, so their products stay what they are (GPT-J, Cohere).
    """

    head_dim: int
    dims: int
    """Rotated rows at the start of each head."""

    def shape(self, ours: Shape) -> Shape:
        """Return the shape of theirs."""
        return ours

    def pairs(self, ours: Array, theirs: Array) -> Iterator[Pair]:
        """Yield views that together hold every element of both sides once."""
        shape = (-1, self.head_dim, *ours.shape[1:])
        mine, other = ours.reshape(shape), theirs.reshape(shape)
        half = self.dims // 2
        yield mine[:, :half], other[:, 0 : self.dims : 2]
        yield mine[:, half : self.dims], other[:, 1 : self.dims : 2]
        yield mine[:, self.dims :], other[:, self.dims :]


Layout = Same | Transposed | Grouped | Rotated
"""Layout of one tensor of theirs."""


@dataclass(frozen=True)
class Stacked:
    """Several tensors of theirs, one after the other in the rows of ours: queries, keys and values; gate and up."""

    layouts: tuple[Layout, ...] = ()
    """Layout of each; empty: all are the same."""

    def of(self, index: int) -> Layout:
        """Return the layout of one tensor of theirs."""
        return self.layouts[index] if self.layouts else Same()


@dataclass(frozen=True)
class Link:
    """One tensor of ours and the tensor of theirs that has its elements, or the several that have them together."""

    ours: str
    """Global name, with `{layer}` for the number of a block."""
    theirs: tuple[str, ...]
    layout: Layout | Stacked = Same()

    def of_layer(self, layer: int) -> Link:
        """Return the link of one block."""
        here = {"layer": layer}
        return Link(self.ours.format(**here), tuple(name.format(**here) for name in self.theirs), self.layout)

    def layout_of(self, index: int) -> Layout:
        """Return the layout of one tensor of theirs."""
        return self.layout.of(index) if isinstance(self.layout, Stacked) else self.layout

    def rows(self, shape: Shape, sections: Sequence[int]) -> tuple[slice, ...]:
        """Return the rows of ours that each tensor of theirs has.

        Args:
            shape: shape of ours.
            sections: numbers of rows of the fused parts of ours.
        """
        if not isinstance(self.layout, Stacked):
            return (slice(0, shape[0]),)
        if len(sections) != len(self.theirs):
            raise ValueError(f"{self.ours} must have {len(self.theirs)} fused parts, but has {len(sections)}")
        ends = [sum(sections[: index + 1]) for index in range(len(sections))]
        return tuple(slice(end - size, end) for end, size in zip(ends, sections, strict=True))

    def shapes(self, shape: Shape, sections: Sequence[int]) -> tuple[Shape, ...]:
        """Return the shapes of theirs; the arguments are those of `rows`."""
        spans = self.rows(shape, sections)
        return tuple(
            self.layout_of(index).shape((rows.stop - rows.start, *shape[1:])) for index, rows in enumerate(spans)
        )

    def pairs(self, index: int, rows: Array, theirs: Array) -> Iterator[Pair]:
        """Yield views of our rows and of one tensor of theirs that hold the same elements."""
        yield from self.layout_of(index).pairs(rows, theirs)
