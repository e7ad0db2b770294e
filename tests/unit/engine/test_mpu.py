from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch.distributed as dist

from trainer.engine.mpu import ModelParallelUnit
from trainer.mesh import Mesh
from trainer.topology.dist_group import DistGroup
from trainer.topology.groups import FakeGroup, Group, ParallelGroups, single_process_groups


def groups(tensor: Group, data: Group) -> ParallelGroups:
    grid = Mesh(1, data.size, tensor.size)
    return replace(single_process_groups(), mesh=grid, gradients=data, tensor=tensor)


def handle(name: str) -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, name)


def test_ranks_and_sizes_are_those_of_the_axes() -> None:
    unit = ModelParallelUnit(groups(tensor=FakeGroup(1, 4), data=FakeGroup(2, 3)))
    assert (unit.get_model_parallel_rank(), unit.get_model_parallel_world_size()) == (1, 4)
    assert (unit.get_tensor_model_parallel_rank(), unit.get_tensor_model_parallel_world_size()) == (1, 4)
    assert (unit.get_data_parallel_rank(), unit.get_data_parallel_world_size()) == (2, 3)


def test_groups_are_those_of_the_axes() -> None:
    tensor = DistGroup(0, 2, handle("tensor handle"), (0, 1))
    data = DistGroup(0, 2, handle("data handle"), (0, 2))
    unit = ModelParallelUnit(groups(tensor, data))
    assert unit.get_model_parallel_group() is tensor.process_group
    assert unit.get_tensor_model_parallel_group() is tensor.process_group
    assert unit.get_data_parallel_group() is data.process_group


def test_a_group_without_peers_has_no_handle() -> None:
    unit = ModelParallelUnit(groups(FakeGroup(0, 2), FakeGroup(0, 2)))
    for ask in (unit.get_model_parallel_group, unit.get_data_parallel_group):
        with pytest.raises(TypeError, match="FakeGroup has no process group"):
            ask()


def test_deepspeed_finds_the_tensor_parallel_rank_under_each_name_that_it_tries() -> None:
    from deepspeed.utils.bwc import (
        bwc_tensor_model_parallel_group,
        bwc_tensor_model_parallel_rank,
        bwc_tensor_model_parallel_world_size,
    )

    tensor = DistGroup(1, 2, handle("tensor handle"), (0, 1))
    unit = ModelParallelUnit(groups(tensor, FakeGroup(0, 2)))
    assert bwc_tensor_model_parallel_rank(unit) == 1
    assert bwc_tensor_model_parallel_world_size(unit) == 2
    assert bwc_tensor_model_parallel_group(unit) is tensor.process_group
