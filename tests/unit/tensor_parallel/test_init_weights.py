from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.models import drawn
from trainer.spec.execution import Execution
from trainer.spec.tensors import Cut, Init, TensorSpec
from trainer.tensor_parallel.init import (
    Drawn,
    Initial,
    Reserved,
    TensorContext,
    draw_normal,
    fill,
    stable_hash,
    tensor_spec,
)
from trainer.tensor_parallel.shard import ShardSpec, shard_spec, unshard
from trainer.topology.groups import FakeGroup

SPEC = ShardSpec("a.weight", (24, 5), 0, (16, 8))
MATRIX = TensorSpec("a.weight", (24, 5), Init.normal, Cut(0, (16, 8)))
RUN = Execution(8, init_std=0.02)


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_hold_parts_of_one_tensor(size: int) -> None:
    parts = [Drawn(7, FakeGroup(rank, size))(SPEC, Initial(0.02)) for rank in range(size)]
    assert torch.equal(unshard(parts, SPEC), draw_normal(SPEC, 0.02, 7))


def test_draw_depends_on_seed_and_name_only() -> None:
    state = torch.random.get_rng_state()
    first = draw_normal(SPEC, 0.02, 7)
    torch.manual_seed(0)
    assert torch.equal(draw_normal(SPEC, 0.02, 7), first)
    assert not torch.equal(draw_normal(SPEC, 0.02, 8), first)
    assert not torch.equal(draw_normal(ShardSpec("b.weight", (24, 5), 0, (24,)), 0.02, 7), first)
    torch.random.set_rng_state(state)
    draw_normal(SPEC, 0.02, 7)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_draw_has_the_asked_deviation() -> None:
    drawn = draw_normal(ShardSpec("big", (400, 400)), 0.02, 1)
    assert math.isclose(drawn.std().item(), 0.02, rel_tol=0.01)
    assert abs(drawn.mean().item()) < 3 * 0.02 / 400


def test_padding_is_zero_and_takes_no_draws() -> None:
    padded = draw_normal(ShardSpec("e", (24, 5), 0, (24,), padding=3), 0.02, 7)
    plain = draw_normal(ShardSpec("e", (21, 5), 0, (21,)), 0.02, 7)
    assert torch.equal(padded[:21], plain)
    assert padded[21:].abs().sum() == 0


class Layer(torch.nn.Module):
    def __init__(self, context: TensorContext) -> None:
        super().__init__()
        self.matrix = context.parameters([MATRIX])["weight"]
        self.inner = torch.nn.Module()
        self.inner.vector = context.parameters([TensorSpec("a.bias", (8,), Init.ones, decays=False)])["bias"]


def test_a_layer_takes_no_memory_until_it_is_filled() -> None:
    group = FakeGroup(1, 2)
    layer = Layer(TensorContext(group, False, RUN))
    assert all(parameter.is_meta for parameter in layer.parameters())
    layer.matrix.requires_grad_(False)
    filled: list[torch.nn.Parameter] = []

    def then(parameter: torch.nn.Parameter) -> None:
        filled.append(parameter)
        assert all(other.is_meta for other in list(layer.parameters())[len(filled) :]), "one after the other"

    assert fill(layer, Drawn(7, group), dtype=torch.bfloat16, then=then) == {"a.weight", "a.bias"}
    matrix, vector = layer.parameters()
    assert [id(one) for one in filled] == [id(matrix), id(vector)]
    assert torch.equal(matrix, Drawn(7, group)(SPEC, Initial(0.02)).bfloat16())
    assert (tuple(matrix.shape), tuple(vector.shape)) == ((12, 5), (8,))
    assert vector.min() == vector.max() == 1
    assert shard_spec(matrix) == SPEC
    assert [hasattr(one, "tensor_model_parallel") for one in (matrix, vector)] == [True, False]
    assert (matrix.requires_grad, vector.requires_grad) == (False, True)


def test_what_is_frozen_is_made_so_and_stays_so() -> None:
    group = FakeGroup(0, 2)
    layer = drawn(Layer(TensorContext(group, False, replace(RUN, frozen=("a.weight",)))), group, 7)
    assert [parameter.requires_grad for parameter in layer.parameters()] == [False, True]
    assert [tensor_spec(parameter).decays for parameter in layer.parameters()] == [True, False]
    with pytest.raises(ValueError, match=r"of shape \(2,\) must be made by a context"):
        tensor_spec(torch.nn.Parameter(torch.zeros(2)))


def test_memory_is_reserved_without_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing must be drawn")

    monkeypatch.setattr("trainer.tensor_parallel.init.draw_normal", refuse)
    group = FakeGroup(0, 2)
    layer = Layer(TensorContext(group, False, RUN))
    fill(layer, Reserved(group))
    assert [tuple(parameter.shape) for parameter in layer.parameters()] == [(12, 5), (8,)]
    with pytest.raises(AssertionError, match="nothing must be drawn"):
        drawn(layer, group, 7)


def test_hash_is_stable_over_processes() -> None:
    assert stable_hash(1, "a") == 10939470743932660649
    assert stable_hash(1, "a") != stable_hash(2, "a")
