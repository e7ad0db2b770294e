from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from torch import nn

from tests.helpers.dist import run_distributed
from tests.helpers.thread_group import run_ranks
from trainer.engine.sharding_without_zero import global_grad_norm
from trainer.mesh import Mesh
from trainer.tensor_parallel.shard import ShardSpec, set_shard_spec, shard
from trainer.topology.dist_group import make_groups
from trainer.topology.groups import Group, SingleGroup, single_process_groups

ONE = SingleGroup()
CPU = torch.device("cpu")


def parameter(gradient: torch.Tensor | None, spec: ShardSpec | None = None, copy: bool = False) -> nn.Parameter:
    made = nn.Parameter(torch.zeros(2 if gradient is None else gradient.shape))
    made.grad = gradient
    if spec is not None:
        set_shard_spec(made, spec)
    if copy:
        made.ds_pipe_replicated = True  # type: ignore[attr-defined]
    return made


def norm_of(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().pow(2).sum()) for tensor in tensors))


FULL = torch.arange(24.0).reshape(8, 3) / 7
BIAS = torch.tensor([3.0, -4.0])
CUT = ShardSpec("w", (8, 3), 0, (8,))
WHOLE = ShardSpec("b", (2,))


def test_one_process_gives_the_plain_norm() -> None:
    norm = global_grad_norm([parameter(FULL, CUT), parameter(BIAS, WHOLE)], single_process_groups())
    assert norm.shape == ()
    assert norm.dtype == torch.float32
    assert float(norm) == pytest.approx(norm_of([FULL, BIAS]), rel=1e-6)


def test_a_parameter_without_a_gradient_and_no_parameters_count_nothing() -> None:
    assert float(global_grad_norm([parameter(None), parameter(BIAS)], single_process_groups())) == pytest.approx(5.0)
    assert float(global_grad_norm([], single_process_groups())) == 0.0


def test_low_precision_gradients_are_squared_in_fp32() -> None:
    # 300 squared is beyond fp16, whose largest number is 65504.
    gradient = torch.full((4,), 300.0, dtype=torch.float16)
    made = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    made.grad = gradient
    assert float(global_grad_norm([made], single_process_groups())) == pytest.approx(600.0)


def test_the_gradients_stay_as_they_are() -> None:
    made = parameter(BIAS.clone())
    global_grad_norm([made], single_process_groups())
    assert made.grad is not None
    assert torch.equal(made.grad, BIAS)


@pytest.mark.parametrize("size", [2, 4])
def test_cut_parameters_count_on_every_tensor_rank_and_replicated_ones_once(size: int) -> None:
    def body(group: Group) -> float:
        groups = replace(single_process_groups(), mesh=Mesh(1, 1, size), rank=group.rank, tensor=group)
        mine = [parameter(shard(FULL, CUT, group.rank, size), CUT), parameter(BIAS.clone(), WHOLE)]
        return float(global_grad_norm(mine, groups))

    expected = norm_of([FULL, BIAS])
    assert run_ranks(size, body) == [pytest.approx(expected, rel=1e-6)] * size
    assert expected != pytest.approx(norm_of([FULL, *[BIAS] * size]), rel=1e-3), "counting twice must show"


@pytest.mark.parametrize("copied_on", [0, 1])
def test_the_copy_of_a_tied_weight_does_not_count(copied_on: int) -> None:
    def body(group: Group) -> float:
        groups = replace(single_process_groups(), mesh=Mesh(2, 1, 1), rank=group.rank, pipeline=group)
        tied = parameter(FULL.clone(), CUT, copy=group.rank == copied_on)
        return float(global_grad_norm([tied, parameter(BIAS * (group.rank + 1), WHOLE)], groups))

    assert run_ranks(2, body) == [pytest.approx(norm_of([FULL, BIAS, BIAS * 2]), rel=1e-6)] * 2


def test_each_stage_counts() -> None:
    def body(group: Group) -> float:
        groups = replace(single_process_groups(), mesh=Mesh(4, 1, 1), rank=group.rank, pipeline=group)
        return float(global_grad_norm([parameter(torch.full((1,), float(group.rank + 1)))], groups))

    assert run_ranks(4, body) == [pytest.approx(math.sqrt(1 + 4 + 9 + 16))] * 4


def norm_on_a_mesh(rank: int, world_size: int) -> float:
    groups = make_groups(Mesh(2, 1, 2), CPU, timedelta(seconds=60))
    stage, tp_rank = groups.pipeline.rank, groups.tensor.rank
    tied = parameter(shard(FULL, CUT, tp_rank, 2), CUT, copy=stage == 1)
    own = parameter(shard(FULL * (stage + 2), CUT, tp_rank, 2), CUT)
    return float(global_grad_norm([tied, own, parameter(BIAS * (stage + 1), WHOLE)], groups))


@pytest.mark.dist
def test_stages_and_tensor_ranks_together() -> None:
    expected = norm_of([FULL, FULL * 2, FULL * 3, BIAS, BIAS * 2])
    assert run_distributed(norm_on_a_mesh, 4, timeout_s=60) == [pytest.approx(expected, rel=1e-6)] * 4
