"""The places of a shard's elements in the whole tensor, and in any other shard of it. Arithmetic only.

A tensor that is sharded along `dim` is seen as a matrix: a row for each index before `dim`, and in a row everything
from `dim` on. A shard has the same columns of every row, so two shards of one tensor share rectangles, however many
ranks each was sharded for. The vocabulary padding is outside: no two shards share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.tensor_parallel.shard import ShardSpec, block_start, local_sections


@dataclass(frozen=True)
class Span:
    """Consecutive columns."""

    local: int
    """First column in a row of the shard."""
    whole: int
    """First column in a row of the whole tensor."""
    width: int


@dataclass(frozen=True)
class Footprint:
    """The columns of the whole tensor that a shard holds."""

    rows: int
    width: int
    """Columns in a row of the shard, padding included."""
    spans: tuple[Span, ...]
    """Spans in ascending order, without padding."""


def footprint(spec: ShardSpec, rank: int = 0, size: int = 1) -> Footprint:
    """Return the footprint of rank `rank` of `size` in a tensor.

    Raises:
        ConfigError: a block cannot be sharded into `size` equal parts.
    """
    if spec.dim is None:
        numel = math.prod(spec.global_shape)
        return Footprint(1, numel, (Span(0, 0, numel),))
    rows, inner = math.prod(spec.global_shape[: spec.dim]), math.prod(spec.global_shape[spec.dim + 1 :])
    end = spec.unpadded_shape[spec.dim] * inner
    spans, local, first = [], 0, 0
    for index, (section, part) in enumerate(zip(spec.sections, local_sections(spec, size), strict=True)):
        whole = first + block_start(spec, index, part, rank) * inner
        width = min(part * inner, end - whole)
        if width > 0:
            spans.append(Span(local, whole, width))
        local += part * inner
        first += section * inner
    return Footprint(rows, local, tuple(spans))


def whole_footprint(spec: ShardSpec) -> Footprint:
    """Return the footprint of the whole tensor without padding."""
    if spec.dim is None:
        return footprint(spec)
    rows = math.prod(spec.global_shape[: spec.dim])
    width = math.prod(spec.unpadded_shape[spec.dim :])
    return Footprint(rows, width, (Span(0, 0, width),))


@dataclass(frozen=True)
class Region:
    """A rectangle that a run of consecutive elements of one shard shares with another shard."""

    offset: int
    """Place in the run at which `rows` times `stride` elements begin, a matrix."""
    stride: int
    rows: int
    column: int
    """First of `width` columns in that matrix."""
    width: int
    other_row: int
    """First row in the other shard."""
    other_column: int


def regions(start: int, numel: int, run_of: Footprint, other: Footprint) -> Iterator[Region]:
    """Yield the regions that the run `[start, start + numel)` of one flattened shard shares with another shard."""
    offset = 0
    while offset < numel:
        row, column = divmod(start + offset, run_of.width)
        # At most three bands: the rest of a row, whole rows, and the beginning of a row.
        stride = min(run_of.width - column, numel - offset)
        rows = (numel - offset) // stride if stride == run_of.width else 1
        for span in run_of.spans:
            low, high = max(span.local, column), min(span.local + span.width, column + stride)
            for theirs in other.spans:
                first = max(span.whole + low - span.local, theirs.whole)
                last = min(span.whole + high - span.local, theirs.whole + theirs.width)
                if first < last:
                    mine = span.local + first - span.whole - column
                    there = theirs.local + first - theirs.whole
                    yield Region(offset, stride, rows, mine, last - first, row, there)
        offset += rows * stride
