"""Process groups as values: frozen, passed to whoever needs them, never looked up in a global.

`Group` is what a layer sees of an axis: its place in it and four collectives. `ProcessGroup`-backed groups run
the collectives; `FakeGroup` pretends to be rank r of n inside one process, for tests and dry runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist

from trainer.topology.exchange import Peers, pays
from trainer.topology.grid import Grid
from trainer.topology.watch import Watch


class Group(Protocol):
    """One axis of the mesh as seen by one rank. Every collective must be called by every rank of the group."""

    @property
    def rank(self) -> int:
        """Index of this rank in the group."""

    @property
    def size(self) -> int:
        """Number of ranks in the group."""

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Reduce in place over the group (op: sum | max) and return `tensor`."""

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return the ranks' tensors concatenated along `dim`: `[..., n, ...] -> [..., size * n, ...]`."""

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Sum over the group and return this rank's chunk along `dim`: `[..., n, ...] -> [..., n / size, ...]`."""


def _reduce_op(op: str) -> dist.ReduceOp.RedOpType:
    if op not in ("sum", "max"):
        raise ValueError(f"op must be sum or max, but is {op}")
    return dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM


def _chunk_length(tensor: torch.Tensor, dim: int, size: int) -> int:
    length = tensor.shape[dim]
    if length % size:
        raise ValueError(f"dimension {dim} of {tuple(tensor.shape)} must be divisible by {size} ranks")
    return length // size


@dataclass(frozen=True)
class SingleGroup:
    """A group of one: every collective is the identity."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Return `tensor`."""
        _reduce_op(op)
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return `tensor`."""
        return tensor

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return `tensor`."""
        return tensor


@dataclass(frozen=True)
class FakeGroup:
    """Rank `rank` of `size` without peers: shapes are those of a real group, values see only this rank.

    all_reduce returns the input, all_gather repeats it `size` times, reduce_scatter takes this rank's chunk.
    """

    rank: int
    size: int

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be in [0, {self.size}), but is {self.rank}")

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Return `tensor`."""
        _reduce_op(op)
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return `size` copies along `dim`."""
        return torch.cat([tensor] * self.size, dim=dim)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return this rank's chunk along `dim`."""
        _chunk_length(tensor, dim, self.size)
        return tensor.chunk(self.size, dim=dim)[self.rank].contiguous()


@dataclass(frozen=True)
class DistGroup:
    """A group over a torch process group."""

    process_group: dist.ProcessGroup
    rank: int
    size: int
    ranks: tuple[int, ...]
    """Global ranks, in group order."""
    watch: Watch = field(default_factory=Watch, compare=False)
    """Told of every collective, for whoever listens."""

    @property
    def _peers(self) -> Peers:
        return Peers(self.process_group, self.rank, self.ranks)

    def _watched(self, finish: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def watched() -> torch.Tensor:
            self.watch.waits()
            result = finish()
            self.watch.received(result)
            return result

        return watched

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Reduce in place over the group and return `tensor`. No host sync on CUDA."""
        kind = _reduce_op(op)
        if self.size == 1:
            return tensor
        self.watch.sends(tensor)
        self.watch.waits()
        if op == "sum" and pays(tensor):
            self._peers.all_reduce(tensor)
        else:
            dist.all_reduce(tensor, op=kind, group=self.process_group)
        self.watch.received(tensor)
        return tensor

    def start_all_reduce(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to sum in place over the group. No host sync on CUDA, where the current stream waits."""
        if self.size == 1:
            return lambda: tensor
        self.watch.sends(tensor)
        if self.size == 2 and pays(tensor):
            return self._watched(self._peers.start_sum(tensor))
        work = dist.all_reduce(tensor, group=self.process_group, async_op=True)
        assert work is not None, "this rank must be in the group"

        def finish() -> torch.Tensor:
            work.wait()
            return tensor

        return self._watched(finish)

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return the ranks' tensors concatenated along `dim`. No host sync on CUDA."""
        if self.size == 1:
            return tensor
        return self.start_all_gather(tensor.movedim(dim, 0))().movedim(0, dim).contiguous()

    def start_all_gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to gather along dimension 0. No host sync on CUDA."""
        mine = tensor.contiguous()
        self.watch.sends(mine)
        out = mine.new_empty((self.size * mine.shape[0], *mine.shape[1:]))
        if pays(mine):
            finish = self._peers.start_all_gather(mine, out.chunk(self.size))
        else:
            work = dist.all_gather_into_tensor(out, mine, group=self.process_group, async_op=True)
            assert work is not None, "this rank must be in the group"
            finish = work.wait

        def result() -> torch.Tensor:
            finish()
            return out

        return self._watched(result)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Sum over the group and return this rank's chunk along `dim`. No host sync on CUDA."""
        if self.size == 1:
            return tensor
        _chunk_length(tensor, dim, self.size)
        return self.start_reduce_scatter(tensor.movedim(dim, 0))().movedim(0, dim).contiguous()

    def start_reduce_scatter(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to sum and scatter along dimension 0. No host sync on CUDA."""
        whole = tensor.contiguous()
        self.watch.sends(whole)
        if pays(whole):
            return self._watched(self._peers.start_reduce_scatter(whole.chunk(self.size)))
        out = whole.new_empty((_chunk_length(whole, 0, self.size), *whole.shape[1:]))
        work = dist.reduce_scatter_tensor(out, whole, group=self.process_group, async_op=True)
        assert work is not None, "this rank must be in the group"

        def result() -> torch.Tensor:
            work.wait()
            return out

        return self._watched(result)


def start_all_reduce(group: Group, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to sum in place over the group; the returned function waits, and returns `tensor`.

    Between the two nobody may touch `tensor`. Collective over the group; no host sync on CUDA.
    """
    if isinstance(group, DistGroup):
        return group.start_all_reduce(tensor)
    group.all_reduce(tensor)
    return lambda: tensor


def start_all_gather(group: Group, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to gather `[n, ...]` along dimension 0; the returned function waits, and returns `[size * n, ...]`.

    Collective over the group; no host sync on CUDA.
    """
    if isinstance(group, DistGroup):
        return group.start_all_gather(tensor)
    gathered = group.all_gather(tensor)
    return lambda: gathered


def start_reduce_scatter(group: Group, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to sum `[size * n, ...]`; the returned function waits, and returns this rank's `[n, ...]`.

    Between the two nobody may change `tensor`. Collective over the group; no host sync on CUDA.
    """
    if isinstance(group, DistGroup):
        return group.start_reduce_scatter(tensor)
    mine = group.reduce_scatter(tensor)
    return lambda: mine


@dataclass(frozen=True)
class ParallelGroups:
    """This rank's place in the mesh: one group an axis."""

    grid: Grid
    rank: int
    """Global rank."""
    world: Group
    pipeline: Group
    data: Group
    tensor: Group
    device: torch.device

    @property
    def is_reporting_rank(self) -> bool:
        """True on the one rank that prints and writes shared files: global rank 0."""
        return self.rank == 0


def _axis_group(rank: int, members: list[list[int]]) -> DistGroup:
    mine: DistGroup | None = None
    for ranks in members:
        handle = dist.new_group(ranks)
        if rank in ranks:
            mine = DistGroup(handle, ranks.index(rank), len(ranks), tuple(ranks))
    if mine is None:
        raise ValueError(f"rank {rank} must be in one of {members}")
    return mine


def make_groups(grid: Grid, device: torch.device) -> ParallelGroups:
    """Create the groups of every axis. Collective over the world, which must be initialised with grid.size ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size != grid.size:
        raise ValueError(f"world size must be {grid.size} = pp * dp * tp, but is {world_size}")
    world_handle = dist.group.WORLD
    assert world_handle is not None
    return ParallelGroups(
        grid=grid,
        rank=rank,
        world=DistGroup(world_handle, rank, world_size, tuple(range(world_size))),
        pipeline=_axis_group(rank, grid.pipeline_groups()),
        data=_axis_group(rank, grid.data_groups()),
        tensor=_axis_group(rank, grid.tensor_groups()),
        device=device,
    )


def single_process_groups(device: torch.device | None = None) -> ParallelGroups:
    """Return groups for one process without torch.distributed."""
    one = SingleGroup()
    return ParallelGroups(Grid(1, 1, 1), 0, one, one, one, one, device or torch.device("cpu"))
