from __future__ import annotations

import pytest
import torch

from trainer.errors import ConfigError
from trainer.spec.tensors import Cut, Init, TensorSpec
from trainer.tensor_parallel.shard import (
    Part,
    ShardSpec,
    parts_of,
    set_shard_spec,
    shard,
    shard_spec,
    shard_spec_of,
    unshard,
    with_padding,
    without_padding,
)

FUSED = ShardSpec("x.weight", (16, 3), 0, (8, 4, 4))
SHARED = ShardSpec("x.weight", (14, 3), 0, (8, 3, 3), whole_sections=2)
"""The last two blocks are whole on every rank."""


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    "spec",
    [
        FUSED,
        SHARED,
        ShardSpec("x.weight", (3, 8), 1, (8,)),
        ShardSpec("x.weight", (5,)),
        ShardSpec("x.bias", (8,), 0, (4, 4)),
    ],
)
def test_unshard_inverts_shard(spec: ShardSpec, size: int) -> None:
    full = torch.randn(spec.global_shape)
    parts = [shard(full, spec, rank, size) for rank in range(size)]
    assert all(tuple(part.shape) == spec.local_shape(size) for part in parts)
    assert torch.equal(unshard(parts, spec), full)


def test_each_rank_gets_its_part_of_every_section() -> None:
    full = torch.arange(16).unsqueeze(1).expand(16, 3)
    assert shard(full, FUSED, 1, 2)[:, 0].tolist() == [4, 5, 6, 7, 10, 11, 14, 15]


def test_shard_owns_its_storage() -> None:
    full = torch.zeros(5)
    shard(full, ShardSpec("x", (5,)), 0, 2).fill_(1.0)
    assert full.sum() == 0


def test_without_padding_cuts_trailing_rows() -> None:
    full = torch.arange(8)
    assert without_padding(full, ShardSpec("x", (8,), 0, (8,), padding=3)).tolist() == [0, 1, 2, 3, 4]
    assert without_padding(full, ShardSpec("x", (8,))).tolist() == full.tolist()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_with_padding_inverts_without_padding(dim: int, padding: int) -> None:
    shape = (8, 3) if dim == 0 else (3, 8)
    spec = ShardSpec("x", shape, dim, (8,), padding)
    bare = torch.ones([size - padding if axis == dim else size for axis, size in enumerate(shape)])
    padded = with_padding(bare, spec)
    assert tuple(padded.shape) == shape
    assert padded.dtype == bare.dtype
    assert torch.equal(without_padding(padded, spec), bare)
    assert padded.sum() == bare.sum(), "padding is zero"


def test_a_tensor_that_is_not_cut_has_no_padding() -> None:
    full = torch.ones(5)
    assert with_padding(full, ShardSpec("x", (5,))) is full


def test_sections_must_fill_the_dimension() -> None:
    with pytest.raises(ValueError, match=r"sections of x must add up to 16, but are \(8, 4\)"):
        ShardSpec("x", (16, 3), 0, (8, 4))


def test_sections_must_be_divisible() -> None:
    with pytest.raises(ConfigError, match=r"x\.weight has a block of 4 .* layout\.tensor_parallel_size \(8\)"):
        shard(torch.zeros(16, 3), FUSED, 0, 8)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"x\.weight must have shape \(16, 3\), but has \(3, 16\)"):
        shard(torch.zeros(3, 16), FUSED, 0, 2)
    with pytest.raises(ValueError, match=r"x\.weight on tensor-parallel rank 1 of 2 must have shape \(8, 3\)"):
        unshard([torch.zeros(8, 3), torch.zeros(8, 2)], FUSED)


def test_cut_parameters_carry_deepspeed_marks_and_replicated_ones_do_not() -> None:
    cut, replicated = torch.nn.Parameter(torch.zeros(8, 3)), torch.nn.Parameter(torch.zeros(5))
    set_shard_spec(cut, FUSED)
    set_shard_spec(replicated, ShardSpec("y", (5,)))
    assert getattr(cut, "tensor_model_parallel", False)
    assert getattr(cut, "model_parallel", False)
    assert not hasattr(replicated, "tensor_model_parallel")
    assert not hasattr(replicated, "model_parallel")
    assert shard_spec(cut) == FUSED


def test_a_foreign_parameter_has_no_spec() -> None:
    with pytest.raises(ValueError, match="must have a shard spec"):
        shard_spec(torch.nn.Parameter(torch.zeros(2)))


@pytest.mark.parametrize(("unit", "padding"), [(1, 0), (5, 4), (20, 19)])
def test_a_vocabulary_is_padded_for_the_layout(unit: int, padding: int) -> None:
    rows = 61 + padding
    tensor = TensorSpec("embedding.weight", (61, 3), Init.normal, Cut(0, (61,), is_vocabulary=True))
    found = shard_spec_of(tensor, unit, 1)
    assert found == ShardSpec("embedding.weight", (rows, 3), 0, (rows,), padding)
    assert without_padding(torch.zeros(rows, 3), found).shape == found.unpadded_shape == tensor.shape
    assert found.local_shape(1)[0] * 3 == tensor.local_numel(1, unit)


def test_heads_of_which_there_are_fewer_than_ranks_are_whole_on_each() -> None:
    tensor = TensorSpec("qkv.weight", (24, 5), Init.normal, Cut(0, (16, 4, 4), heads=(8, 2, 2)))
    whole = {size: shard_spec_of(tensor, 1, size).whole_sections for size in (1, 2, 4, 8)}
    assert whole == {1: 0, 2: 0, 4: 2, 8: 2}
    spec = shard_spec_of(tensor, 1, 4)
    assert spec.local_shape(4) == (4 + 4 + 4, 5)
    assert tensor.local_numel(4, 1) == 12 * 5
    assert parts_of(spec, 4) == (Part(0, 20), Part(20, 40))
    assert parts_of(shard_spec_of(tensor, 1, 2), 2) == (Part(0, 60),)
    norm = TensorSpec("key_norm.weight", (4,), Init.ones, Cut(0, (4,), heads=(2,)))
    assert shard_spec_of(norm, 1, 4) == ShardSpec("key_norm.weight", (4,))
    assert shard_spec_of(norm, 1, 2) == ShardSpec("key_norm.weight", (4,), 0, (4,))
    assert norm.local_numel(4, 1) == 4


def test_what_is_no_vocabulary_is_never_padded() -> None:
    fused = TensorSpec("qkv.weight", (6, 3), Init.normal, Cut(0, (4, 2)))
    assert shard_spec_of(fused, 5, 2) == ShardSpec("qkv.weight", (6, 3), 0, (4, 2))
    assert shard_spec_of(TensorSpec("norm.weight", (6,), Init.ones), 5, 2) == ShardSpec("norm.weight", (6,))
