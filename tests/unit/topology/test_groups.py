from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import torch

from tests.helpers.dist import run_distributed
from tests.helpers.thread_group import run_ranks
from trainer.mesh import Mesh
from trainer.topology import exchange
from trainer.topology.dist_group import make_groups
from trainer.topology.groups import FakeGroup, Group, SingleGroup, single_process_groups

TIMEOUT_S = 60
AXES = ("world", "control", "pipeline", "samples", "gradients", "tensor")


def tensor_of(rank: int) -> torch.Tensor:
    """A different [4, 8, 12] tensor on each rank, exact in fp32."""
    return torch.arange(384.0).reshape(4, 8, 12) * (rank + 1) - 50 * rank


def collectives(rank: int, world_size: int, grid: Mesh) -> dict[str, Any]:
    groups = make_groups(grid, torch.device("cpu"), timedelta(seconds=60))
    mine = tensor_of(rank)
    strided = mine.transpose(0, 2)
    found: dict[str, Any] = {
        "ranks": {name: getattr(groups, name).ranks for name in AXES},
        "place": (groups.pipeline.rank, groups.samples.rank, groups.tensor.rank, groups.world.rank, groups.rank),
        "where": groups.place,
        "shared": groups.samples is groups.gradients,
        "reports": groups.is_reporting_rank,
    }
    for axis in AXES:
        group: Group = getattr(groups, axis)
        reduced = mine.clone()
        assert group.all_reduce(reduced) is reduced
        found[f"{axis} sum"] = reduced
        started = mine.clone()
        assert group.start_all_reduce(started)() is started
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
@pytest.mark.parametrize("grid", [Mesh(1, 1, 2), Mesh(2, 1, 2), Mesh(1, 4, 1)], ids=str)
def test_collectives_over_each_axis_against_plain_arithmetic(
    grid: Mesh, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SMALLEST", smallest)
    outcomes = run_distributed(collectives, grid.size, grid, timeout_s=TIMEOUT_S)
    for rank, found in enumerate(outcomes):
        at = grid.coordinate(rank)
        assert found["place"] == (at.stage, at.dp_rank, at.tp_rank, rank, rank)
        assert found["reports"] == (rank == 0)
        assert found["where"] == at
        check_axis(found, "world", list(range(grid.size)), rank)
        check_axis(found, "control", list(range(grid.size)), rank)
        pipes = [grid.rank(stage, at.dp_rank, at.tp_rank) for stage in range(grid.pipeline_parallel_size)]
        check_axis(found, "pipeline", pipes, at.stage)
        replicas = [grid.rank(at.stage, d, at.tp_rank) for d in range(grid.data_parallel_size)]
        # Who reads other samples averages gradients with the same ranks, over the same process group.
        check_axis(found, "samples", replicas, at.dp_rank)
        check_axis(found, "gradients", replicas, at.dp_rank)
        assert found["shared"]
        shards = [grid.rank(at.stage, at.dp_rank, t) for t in range(grid.tensor_parallel_size)]
        check_axis(found, "tensor", shards, at.tp_rank)


def groups_of_wrong_size(rank: int, world_size: int) -> str:
    with pytest.raises(ValueError, match="world size must be") as caught:
        make_groups(Mesh(2, 2, 1), torch.device("cpu"), timedelta(seconds=60))
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
        group.start_all_reduce(tensor)(),
        group.all_gather(tensor, dim=1),
        group.reduce_scatter(tensor, dim=1),
    ):
        assert result is tensor


def test_a_fake_group_has_the_shapes_of_a_real_one() -> None:
    group, tensor = FakeGroup(rank=1, size=2), torch.arange(24.0).reshape(4, 6)
    assert group.all_reduce(tensor) is tensor
    assert group.start_all_reduce(tensor)() is tensor
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
    assert groups.mesh == Mesh(1, 1, 1)
    assert groups.is_reporting_rank
    assert groups.device == torch.device("cpu")
    assert all(getattr(groups, axis).size == 1 for axis in AXES)


@dataclass(frozen=True)
class Plain(Group):
    """A group that can do no more than it must: everything else has the bodies of `Group`."""

    group: Group

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        return self.group.all_reduce(tensor, op)

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return self.group.all_gather(tensor, dim)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return self.group.reduce_scatter(tensor, dim)


def everything_else(group: Group) -> dict[str, Any]:
    """Call what a group can do besides its three collectives."""
    rank, size = group.rank, group.size
    mine = tensor_of(rank)[:, :, : 4 * size].repeat(size, 1, 1)
    strided = mine.transpose(1, 2)
    right, left = (rank + 1) % size, (rank - 1) % size
    found = {
        "all_to_all": group.all_to_all(mine),
        "all_to_all strided": group.all_to_all(strided),
        "started all_to_all": group.start_all_to_all(mine)(),
        "parts": torch.cat(group.all_to_all_parts(*uneven_parts(rank, size))),
        "ring": group.send_receive(mine, right, left),
        "ring strided": group.send_receive(strided, right, left),
        "started ring": group.start_send_receive(mine, left, right)(),
        "kept": group.send_receive(mine, rank, rank),
        "started gather": group.start_all_gather(mine)(),
        "started scatter": group.start_reduce_scatter(mine)(),
        "started sum": group.start_all_reduce(mine.clone())(),
        "started max": group.start_all_reduce(-mine.clone(), op="max")(),
        "objects": group.gather_objects({"rank": rank, "text": "x" * 100 * rank}),
    }
    assert torch.equal(mine, tensor_of(rank)[:, :, : 4 * size].repeat(size, 1, 1)), "what is sent must be left alone"
    for wrong in (lambda: group.send_receive(mine, size, left), lambda: group.send(mine, -1)):
        with pytest.raises(ValueError, match=rf"a peer must be in \[0, {size}\)"):
            wrong()
    if size > 1:
        with pytest.raises(ValueError, match=f"must be divisible by {size} ranks"):
            group.all_to_all(mine[: size + 1])
    return found


def uneven_parts(rank: int, size: int) -> tuple[list[torch.Tensor], list[int]]:
    """Return what a rank hands to each rank, of other sizes each and nothing to the first, and what it receives."""
    parts = [tensor_of(rank).reshape(-1)[: other * (rank + 1)] for other in range(size)]
    return parts, [rank * (other + 1) for other in range(size)]


def expected_of_everything_else(rank: int, size: int) -> dict[str, Any]:
    """What plain arithmetic says of `everything_else`."""
    all_mine = [tensor_of(other)[:, :, : 4 * size].repeat(size, 1, 1) for other in range(size)]
    swapped = torch.cat([one.chunk(size)[rank] for one in all_mine])
    total = sum(all_mine[1:], all_mine[0])
    right, left = (rank + 1) % size, (rank - 1) % size
    return {
        "all_to_all": swapped,
        "all_to_all strided": swapped.transpose(1, 2),
        "started all_to_all": swapped,
        "parts": torch.cat([uneven_parts(other, size)[0][rank] for other in range(size)]),
        "ring": all_mine[left],
        "ring strided": all_mine[left].transpose(1, 2),
        "started ring": all_mine[right],
        "kept": all_mine[rank],
        "started gather": torch.cat(all_mine),
        "started scatter": total.chunk(size)[rank],
        "started sum": total,
        "started max": torch.stack([-one for one in all_mine]).amax(0),
        "objects": [{"rank": other, "text": "x" * 100 * other} for other in range(size)],
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("bodies", ["of threads", "of Group"])
def test_threads_and_the_default_bodies_do_what_plain_arithmetic_says(size: int, bodies: str) -> None:
    def body(group: Group) -> dict[str, Any]:
        return everything_else(group if bodies == "of threads" else Plain(group.rank, group.size, group))

    for rank, found in enumerate(run_ranks(size, body)):
        assert_same(found, expected_of_everything_else(rank, size))


def everything_else_of_processes(rank: int, world_size: int) -> dict[str, Any]:
    groups = make_groups(Mesh(1, 1, world_size), torch.device("cpu"), timedelta(seconds=TIMEOUT_S))
    return everything_else(groups.tensor)


@pytest.mark.dist
@pytest.mark.parametrize("smallest", [1, 1 << 30], ids=["messages", "gloo"])
def test_processes_do_what_threads_do(smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "SMALLEST", smallest)
    for rank, found in enumerate(run_distributed(everything_else_of_processes, 3, timeout_s=TIMEOUT_S)):
        assert_same(found, expected_of_everything_else(rank, 3))


def letters(group: Group) -> list[torch.Tensor]:
    """Rank 0 hears from everybody, and answers the last one."""
    last = group.size - 1
    if group.rank == 0:
        heard = [group.receive(torch.empty(3, 2), source) for source in range(1, group.size)]
        group.send(heard[-1].t(), last)
        return heard
    group.send(torch.full((2, 3), float(group.rank)).t(), 0)
    return [group.receive(torch.empty(2, 3), 0)] if group.rank == last else []


def letters_of_processes(rank: int, world_size: int) -> list[torch.Tensor]:
    return letters(make_groups(Mesh(1, 1, world_size), torch.device("cpu"), timedelta(seconds=TIMEOUT_S)).control)


@pytest.mark.parametrize("kind", ["threads", pytest.param("processes", marks=pytest.mark.dist)])
def test_messages_arrive(kind: str) -> None:
    outcomes = run_ranks(3, letters) if kind == "threads" else run_distributed(letters_of_processes, 3, timeout_s=60)
    assert [[int(tensor[0, 0]) for tensor in found] for found in outcomes] == [[1, 2], [], [2]]
    assert outcomes[2][0].shape == (2, 3)


def test_who_is_alone_or_pretends_has_nobody_to_talk_to() -> None:
    for group in (SingleGroup(), FakeGroup(1, 2)):
        with pytest.raises(ValueError, match=f"nobody to send to in a {type(group).__name__}"):
            group.send(torch.zeros(1), 0)
        with pytest.raises(ValueError, match=f"nobody to hear from in a {type(group).__name__}"):
            group.receive(torch.zeros(1), 0)
        with pytest.raises(TypeError, match=f"a {type(group).__name__} has no process group"):
            _ = group.handle


def test_threads_that_send_to_one_rank_are_refused() -> None:
    with pytest.raises(RuntimeError, match="every rank must hear from one that sends to it"):
        run_ranks(2, lambda group: group.send_receive(torch.zeros(1), 0, 0))
