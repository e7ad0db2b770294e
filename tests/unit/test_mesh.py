from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.mesh import Coordinate, Mesh

sizes = st.integers(1, 6)


def deepspeed_topology(pp: int, dp: int, tp: int) -> Any:
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    return PipeModelDataParallelTopology(num_pp=pp, num_mp=tp, num_dp=dp)


# The first example pays for importing deepspeed.
@settings(deadline=None, max_examples=60)
@given(pp=sizes, dp=sizes, tp=sizes)
def test_ranks_and_groups_are_those_of_deepspeed(pp: int, dp: int, tp: int) -> None:
    grid, theirs = Mesh(pp, dp, tp), deepspeed_topology(pp, dp, tp)
    assert grid.size == theirs.world_size()
    for rank in range(grid.size):
        place, coord = grid.coordinate(rank), theirs.get_coord(rank)
        assert astuple(place) == (coord.pipe, coord.data, coord.model)
        assert (
            grid.rank(*astuple(place)) == rank == theirs.get_rank(pipe=coord.pipe, data=coord.data, model=coord.model)
        )
    # DeepSpeed has no list of an axis that it would need no group for.
    everyone = [[rank] for rank in range(grid.size)]
    assert grid.pipeline_groups() == (theirs.get_axis_comm_lists("pipe") or everyone)
    assert grid.sample_groups() == (theirs.get_axis_comm_lists("data") or everyone)
    assert grid.tensor_groups() == (theirs.get_axis_comm_lists("model") or everyone)


@given(pp=sizes, dp=sizes, tp=sizes)
def test_every_rank_is_in_one_group_of_each_axis(pp: int, dp: int, tp: int) -> None:
    grid = Mesh(pp, dp, tp)
    axes = ((grid.pipeline_groups(), pp), (grid.sample_groups(), dp), (grid.tensor_groups(), tp))
    for groups, size in axes:
        assert {len(group) for group in groups} == {size}
        assert sorted(rank for group in groups for rank in group) == list(range(grid.size))


def test_the_tensor_axis_is_innermost_and_the_pipe_axis_outermost() -> None:
    grid = Mesh(pipeline_parallel_size=2, data_parallel_size=2, tensor_parallel_size=2)
    assert grid.tensor_groups() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert grid.sample_groups() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert grid.pipeline_groups() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert grid.coordinate(5) == Coordinate(stage=1, dp_rank=0, tp_rank=1)


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (2, -1, 2)])
def test_axes_without_ranks_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1, but are \("):
        Mesh(*bad)


@pytest.mark.parametrize("rank", [-1, 12])
def test_ranks_outside_the_mesh_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank must be in \[0, 12\), but is {rank}"):
        Mesh(2, 3, 2).coordinate(rank)


@pytest.mark.parametrize("place", [(2, 0, 0), (0, 3, 0), (0, 0, 2), (-1, 0, 0)])
def test_places_outside_the_mesh_are_refused(place: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"must be in the mesh of sizes \(2, 3, 2\), but is \("):
        Mesh(2, 3, 2).rank(*place)
