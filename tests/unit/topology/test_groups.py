from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.dist import run_distributed
from trainer.topology import exchange
from trainer.topology.grid import Grid
from trainer.topology.groups import FakeGroup, Group, SingleGroup, make_groups, single_process_groups, start_all_reduce

TIMEOUT_S = 60


def tensor_of(rank: int) -> torch.Tensor:
    """A different [4, 8, 12] tensor on each rank, exact in fp32."""
    return torch.arange(384.0).reshape(4, 8, 12) * (rank + 1) - 50 * rank


def collectives(rank: int, world_size: int, grid: Grid) -> dict[str, Any]:
    groups = make_groups(grid, torch.device("cpu"))
    mine = tensor_of(rank)
    strided = mine.transpose(0, 2)
    found: dict[str, Any] = {
        "ranks": {name: getattr(groups, name).ranks for name in ("world", "pipeline", "data", "tensor")},
        "place": (groups.pipeline.rank, groups.data.rank, groups.tensor.rank, groups.world.rank, groups.rank),
        "reports": groups.is_reporting_rank,
    }
    for axis in ("world", "pipeline", "data", "tensor"):
        group: Group = getattr(groups, axis)
        reduced = mine.clone()
        assert group.all_reduce(reduced) is reduced
        found[f"{axis} sum"] = reduced
        started = mine.clone()
        assert start_all_reduce(group, started)() is started
        found[f"{axis} started sum"] = started
        found[f"{axis} max"] = group.all_reduce(-mine.clone(), op="max")
        for dim in (0, 1, 2, -1):
            found[f"{axis} gather {dim}"] = group.all_gather(mine, dim=dim)
            found[f"{axis} scatter {dim}"] = group.reduce_scatter(mine, dim=dim)
        found[f"{axis} gather strided"] = group.all_gather(strided, dim=1)
        found[f"{axis} scatter strided"] = group.reduce_scatter(strided, dim=1)
    assert torch.equal(mine, tensor_of(rank)), "gather and scatter must leave their input alone"
    with pytest.raises(ValueError, match="op must be sum or max, but is mean"):
        groups.world.all_reduce(mine, op="mean")
    with pytest.raises(ValueError, match=rf"dimension 0 of \(3, 8, 12\) must be divisible by {world_size} ranks"):
        groups.world.reduce_scatter(mine[:3])
    return found


def check_axis(found: dict[str, Any], axis: str, members: list[int], place: int) -> None:
    tensors = [tensor_of(rank) for rank in members]
    total, size = sum(tensors, torch.zeros(4, 8, 12)), len(members)
    assert found["ranks"][axis] == tuple(members)
    assert torch.equal(found[f"{axis} sum"], total)
    assert torch.equal(found[f"{axis} started sum"], total)
    assert torch.equal(found[f"{axis} max"], torch.stack([-t for t in tensors]).amax(0))
    for dim in (0, 1, 2, -1):
        assert torch.equal(found[f"{axis} gather {dim}"], torch.cat(tensors, dim=dim))
        assert torch.equal(found[f"{axis} scatter {dim}"], total.chunk(size, dim=dim)[place])
    assert torch.equal(found[f"{axis} gather strided"], torch.cat([t.transpose(0, 2) for t in tensors], dim=1))
    assert torch.equal(found[f"{axis} scatter strided"], total.transpose(0, 2).chunk(size, dim=1)[place])


@pytest.mark.dist
@pytest.mark.parametrize("smallest", [1, 1 << 30], ids=["messages", "gloo"])
@pytest.mark.parametrize("grid", [Grid(1, 1, 2), Grid(2, 1, 2), Grid(1, 4, 1)], ids=str)
def test_collectives_over_each_axis_against_plain_arithmetic(
    grid: Grid, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SMALLEST", smallest)
    outcomes = run_distributed(collectives, grid.size, grid, timeout_s=TIMEOUT_S)
    for rank, found in enumerate(outcomes):
        at = grid.coordinate(rank)
        assert found["place"] == (at.stage, at.dp_rank, at.tp_rank, rank, rank)
        assert found["reports"] == (rank == 0)
        check_axis(found, "world", list(range(grid.size)), rank)
        pipes = [grid.rank(stage, at.dp_rank, at.tp_rank) for stage in range(grid.pipeline_parallel_size)]
        check_axis(found, "pipeline", pipes, at.stage)
        replicas = [grid.rank(at.stage, d, at.tp_rank) for d in range(grid.data_parallel_size)]
        check_axis(found, "data", replicas, at.dp_rank)
        shards = [grid.rank(at.stage, at.dp_rank, t) for t in range(grid.tensor_parallel_size)]
        check_axis(found, "tensor", shards, at.tp_rank)


def groups_of_wrong_size(rank: int, world_size: int) -> str:
    with pytest.raises(ValueError, match="world size must be") as caught:
        make_groups(Grid(2, 2, 1), torch.device("cpu"))
    return str(caught.value)


@pytest.mark.dist
def test_a_world_of_another_size_is_refused_on_every_rank() -> None:
    outcomes = run_distributed(groups_of_wrong_size, 2, timeout_s=TIMEOUT_S)
    assert outcomes == ["world size must be 4 = pp * dp * tp, but is 2"] * 2


def test_a_group_of_one_changes_nothing() -> None:
    group, tensor = SingleGroup(), torch.randn(3, 4)
    assert (group.rank, group.size) == (0, 1)
    for result in (
        group.all_reduce(tensor),
        group.all_reduce(tensor, op="max"),
        start_all_reduce(group, tensor)(),
        group.all_gather(tensor, dim=1),
        group.reduce_scatter(tensor, dim=1),
    ):
        assert result is tensor


def test_a_fake_group_has_the_shapes_of_a_real_one() -> None:
    group, tensor = FakeGroup(rank=1, size=2), torch.arange(24.0).reshape(4, 6)
    assert group.all_reduce(tensor) is tensor
    assert start_all_reduce(group, tensor)() is tensor
    assert torch.equal(group.all_gather(tensor, dim=1), torch.cat([tensor, tensor], dim=1))
    assert torch.equal(group.reduce_scatter(tensor, dim=1), tensor[:, 3:])
    assert group.reduce_scatter(tensor, dim=1).is_contiguous()
    assert torch.equal(group.reduce_scatter(tensor), tensor[2:])


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_fake_rank_is_inside_its_group(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match=rf"rank must be in \[0, {size}\), but is {rank}"):
        FakeGroup(rank, size)


def test_fake_and_single_groups_refuse_what_a_real_one_refuses() -> None:
    with pytest.raises(ValueError, match=r"dimension 1 of \(2, 3\) must be divisible by 2 ranks"):
        FakeGroup(0, 2).reduce_scatter(torch.zeros(2, 3), dim=1)
    for group in (FakeGroup(0, 2), SingleGroup()):
        with pytest.raises(ValueError, match="op must be sum or max, but is mean"):
            group.all_reduce(torch.zeros(2), op="mean")


def test_groups_of_one_process() -> None:
    groups = single_process_groups()
    assert groups.grid == Grid(1, 1, 1)
    assert groups.is_reporting_rank
    assert groups.device == torch.device("cpu")
    assert all(group.size == 1 for group in (groups.world, groups.pipeline, groups.data, groups.tensor))
