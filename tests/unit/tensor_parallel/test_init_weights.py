from __future__ import annotations

import math

import pytest
import torch

from trainer.tensor_parallel.init import constant_parameter, draw_normal, normal_parameter, stable_hash
from trainer.tensor_parallel.shard import ShardSpec, shard_spec, unshard
from trainer.topology.groups import FakeGroup

SPEC = ShardSpec("a.weight", (24, 5), 0, (16, 8))


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_hold_parts_of_one_tensor(size: int) -> None:
    parts = [normal_parameter(SPEC, 0.02, 7, FakeGroup(rank, size)).detach() for rank in range(size)]
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


def test_constant_parameter_has_the_local_shape() -> None:
    parameter = constant_parameter(SPEC, 1.0, FakeGroup(0, 2))
    assert tuple(parameter.shape) == (12, 5)
    assert parameter.min() == parameter.max() == 1
    assert shard_spec(parameter) == SPEC


def test_hash_is_stable_over_processes() -> None:
    assert stable_hash(1, "a") == 10939470743932660649
    assert stable_hash(1, "a") != stable_hash(2, "a")
