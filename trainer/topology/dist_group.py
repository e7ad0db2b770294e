"""Groups over torch process groups, and making all those of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from trainer.mesh import Mesh
from trainer.topology.exchange import Peers, pays
from trainer.topology.groups import Finish, Group, ParallelGroups, chunk_length, reduce_op

T = TypeVar("T")


@dataclass(frozen=True)
class DistGroup(Group):
    """A group over a torch process group."""

    process_group: dist.ProcessGroup
    ranks: tuple[int, ...]
    """Global ranks, in group order."""

    @property
    def handle(self) -> dist.ProcessGroup:
        """The torch process group."""
        return self.process_group

    @property
    def _peers(self) -> Peers:
        return Peers(self.process_group, self.rank, self.ranks)

    def _watched(self, finish: Finish) -> Finish:
        def watched() -> torch.Tensor:
            self.watch.waits()
            result = finish()
            self.watch.received(result)
            return result

        return watched

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Reduce in place over the group and return `tensor`. No host sync on CUDA."""
        kind = reduce_op(op)
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

    def start_all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> Finish:
        """Begin to reduce in place over the group. No host sync on CUDA, where the current stream waits."""
        kind = reduce_op(op)
        if self.size == 1:
            return lambda: tensor
        self.watch.sends(tensor)
        if self.size == 2 and op == "sum" and pays(tensor):
            return self._watched(self._peers.start_sum(tensor))
        work = dist.all_reduce(tensor, op=kind, group=self.process_group, async_op=True)
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

    def start_all_gather(self, tensor: torch.Tensor) -> Finish:
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
        chunk_length(tensor, dim, self.size)
        return self.start_reduce_scatter(tensor.movedim(dim, 0))().movedim(0, dim).contiguous()

    def start_reduce_scatter(self, tensor: torch.Tensor) -> Finish:
        """Begin to sum and scatter along dimension 0. No host sync on CUDA."""
        whole = tensor.contiguous()
        self.watch.sends(whole)
        if pays(whole):
            return self._watched(self._peers.start_reduce_scatter(whole.chunk(self.size)))
        out = whole.new_empty((chunk_length(whole, 0, self.size), *whole.shape[1:]))
        work = dist.reduce_scatter_tensor(out, whole, group=self.process_group, async_op=True)
        assert work is not None, "this rank must be in the group"

        def result() -> torch.Tensor:
            work.wait()
            return out

        return self._watched(result)

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hand chunk i along dimension 0 to rank i; return the chunks that came. No host sync on CUDA."""
        return self.start_all_to_all(tensor)()

    def start_all_to_all(self, tensor: torch.Tensor) -> Finish:
        """Begin `all_to_all`. No host sync on CUDA."""
        chunk_length(tensor, 0, self.size)
        if self.size == 1:
            return lambda: tensor
        whole = tensor.contiguous()
        self.watch.sends(whole)
        out = torch.empty_like(whole)
        work = dist.all_to_all_single(out, whole, group=self.process_group, async_op=True)
        assert work is not None, "this rank must be in the group"

        def result() -> torch.Tensor:
            work.wait()
            return out

        return self._watched(result)

    def all_to_all_parts(self, parts: Sequence[torch.Tensor], receives: Sequence[int]) -> list[torch.Tensor]:
        """Hand part i, [n_i], to rank i; return those received, in rank order. No host sync on CUDA."""
        if self.size == 1:
            return list(parts)
        mine = torch.cat(list(parts))
        self.watch.sends(mine)
        self.watch.waits()
        out = mine.new_empty(sum(receives))
        dist.all_to_all_single(out, mine, list(receives), [part.numel() for part in parts], group=self.process_group)
        self.watch.received(out)
        return list(torch.split(out, list(receives)))

    def send_receive(self, tensor: torch.Tensor, to: int, source: int) -> torch.Tensor:
        """Hand `tensor` to rank `to` and return the one of rank `source`. No host sync on CUDA."""
        return self.start_send_receive(tensor, to, source)()

    def start_send_receive(self, tensor: torch.Tensor, to: int, source: int) -> Finish:
        """Begin `send_receive`. No host sync on CUDA."""
        self._check_peer(to)
        self._check_peer(source)
        if self.rank in (to, source):
            if to != source:
                raise ValueError(f"rank {self.rank} must keep its own tensor or hand on another one, not both")
            return lambda: tensor
        mine = tensor.contiguous()
        self.watch.sends(mine)
        out = torch.empty_like(mine)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, mine, self.ranks[to], self.process_group),
                dist.P2POp(dist.irecv, out, self.ranks[source], self.process_group),
            ]
        )

        def result() -> torch.Tensor:
            for work in works:
                work.wait()
            return out

        return self._watched(result)

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Send a message to one rank of the group."""
        self._check_other(to)
        mine = tensor.contiguous()
        self.watch.sends(mine)
        dist.send(mine, dst=self.ranks[to], group=self.process_group)

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Fill a contiguous `tensor` with the message of one rank of the group, and return it."""
        self._check_other(source)
        self.watch.waits()
        dist.recv(tensor, src=self.ranks[source], group=self.process_group)
        self.watch.received(tensor)
        return tensor

    def _check_other(self, rank: int) -> None:
        self._check_peer(rank)
        if rank == self.rank:
            raise ValueError(f"rank {rank} must send to another rank and hear from another one, not from itself")

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's value, in rank order."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return cast(list[T], values)


class _Maker:
    """Makes process groups; those of two meanings that are the same ranks are one."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._made: dict[tuple[tuple[int, ...], ...], DistGroup] = {}

    def group(self, members: list[list[int]]) -> DistGroup:
        """Return this rank's group of `members`. Collective over the world."""
        key = tuple(map(tuple, members))
        if key not in self._made:
            self._made[key] = self._new(members)
        return self._made[key]

    def _new(self, members: list[list[int]]) -> DistGroup:
        mine: DistGroup | None = None
        for ranks in members:
            handle = dist.new_group(ranks)
            if self._rank in ranks:
                mine = DistGroup(ranks.index(self._rank), len(ranks), handle, tuple(ranks))
        if mine is None:
            raise ValueError(f"rank {self._rank} must be in one of {members}")
        return mine


def host_group(timeout: timedelta) -> DistGroup:
    """Return a new gloo group over the world, for a thread's collectives on host memory. Collective over the world."""
    rank, size = dist.get_rank(), dist.get_world_size()
    return DistGroup(rank, size, dist.new_group(backend="gloo", timeout=timeout), tuple(range(size)))


def make_groups(mesh: Mesh, device: torch.device, timeout: timedelta) -> ParallelGroups:
    """Create this rank's groups. Collective over the world, which must be initialised with mesh.size ranks.

    Args:
        mesh: the run's mesh.
        device: this rank's device.
        timeout: time-out of the collectives on the host.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if world_size != mesh.size:
        raise ValueError(f"world size must be {mesh.size} = pp * dp * tp, but is {world_size}")
    world_handle = dist.group.WORLD
    assert world_handle is not None
    maker = _Maker(rank)
    return ParallelGroups(
        mesh=mesh,
        rank=rank,
        device=device,
        world=DistGroup(rank, world_size, world_handle, tuple(range(world_size))),
        pipeline=maker.group(mesh.pipeline_groups()),
        samples=maker.group(mesh.sample_groups()),
        gradients=maker.group(mesh.gradient_groups()),
        tensor=maker.group(mesh.tensor_groups()),
        control=host_group(timeout),
    )
