"""What two cuts of a tensor share is what indexing says, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.checkpoint.fragments import cut_run
from trainer.checkpoint.regions import Footprint, Span, footprint, regions, whole_footprint
from trainer.errors import ConfigError
from trainer.tensor_parallel.shard import ShardSpec, shard, with_padding

SIZES = (1, 2, 4)


@st.composite
def specs(draw: st.DrawFn) -> ShardSpec:
    """Tensors of one to three dimensions, cut along any or none, in one to three blocks, with some padding."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    dim = draw(st.none() | st.integers(0, len(shape) - 1))
    if dim is None:
        return ShardSpec("x", tuple(shape))
    sections = tuple(4 * draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 3))))
    shape[dim] = sum(sections)
    return ShardSpec("x", tuple(shape), dim, sections, draw(st.integers(0, sections[-1])))


def numbered(spec: ShardSpec) -> torch.Tensor:
    """Every element another number; padding zero."""
    numel = math.prod(spec.unpadded_shape)
    return torch.arange(1.0, numel + 1).reshape(spec.unpadded_shape)


@settings(max_examples=150, deadline=None)
@given(spec=specs(), size=st.sampled_from(SIZES), chance=st.randoms(use_true_random=False))
def test_a_run_of_a_shard_is_cut_out_of_the_whole(spec: ShardSpec, size: int, chance: st.DataObject) -> None:
    whole = numbered(spec)
    for rank in range(size):
        flat = shard(with_padding(whole, spec), spec, rank, size).reshape(-1)
        start = chance.randrange(flat.numel())  # type: ignore[attr-defined]
        numel = chance.randrange(flat.numel() - start + 1)  # type: ignore[attr-defined]
        assert torch.equal(cut_run(whole, spec, rank, size, start, numel), flat[start : start + numel])


@settings(max_examples=150, deadline=None)
@given(spec=specs(), sizes=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)))
def test_two_shards_share_what_both_hold(spec: ShardSpec, sizes: tuple[int, int]) -> None:
    padded = with_padding(numbered(spec), spec)
    for rank in range(sizes[0]):
        mine = shard(padded, spec, rank, sizes[0])
        for other_rank in range(sizes[1]):
            theirs = shard(padded, spec, other_rank, sizes[1])
            there = footprint(spec, other_rank, sizes[1])
            found = torch.zeros(there.rows, there.width)
            for r in regions(0, mine.numel(), footprint(spec, rank, sizes[0]), there):
                band = mine.reshape(-1)[r.offset : r.offset + r.rows * r.stride].view(r.rows, r.stride)
                part = band[:, r.column : r.column + r.width]
                assert (found[r.other_row : r.other_row + r.rows, r.other_column : r.other_column + r.width] == 0).all()
                found[r.other_row : r.other_row + r.rows, r.other_column : r.other_column + r.width] = part
            held = torch.isin(theirs, mine[mine > 0])
            assert torch.equal(found.reshape(theirs.shape), theirs * held)


def test_a_fused_tensor_has_a_span_for_each_block() -> None:
    spec = ShardSpec("qkv", (16, 3), 0, (8, 4, 4))
    assert footprint(spec, 1, 2) == Footprint(1, 24, (Span(0, 12, 12), Span(12, 30, 6), Span(18, 42, 6)))
    assert whole_footprint(spec) == Footprint(1, 48, (Span(0, 0, 48),))


def test_a_rank_of_nothing_but_padding_has_no_span() -> None:
    spec = ShardSpec("embedding.weight", (8, 3), 0, (8,), 5)
    assert footprint(spec, 1, 2) == Footprint(1, 12, ())
    assert footprint(spec, 0, 2).spans == (Span(0, 0, 9),)


def test_a_tensor_that_is_not_cut_is_one_row() -> None:
    assert (
        footprint(ShardSpec("norm", (4, 5)))
        == whole_footprint(ShardSpec("norm", (4, 5)))
        == Footprint(1, 20, (Span(0, 0, 20),))
    )


def test_a_block_that_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="divisible"):
        footprint(ShardSpec("x", (6, 2), 0, (6,)), 0, 4)
