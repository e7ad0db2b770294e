"""Process groups as values: frozen, passed to whoever needs them, never looked up in a global.

`Group` is what a layer sees of the ranks that it has to do with: its place among them and what they can do together.
`DistGroup` (dist_group.py) does it over a torch process group; `FakeGroup` pretends to be rank r of n inside one
process, for tests and dry runs. `ParallelGroups` are all groups of a rank.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

from trainer.mesh import Coordinate, Mesh
from trainer.topology.watch import Watch

T = TypeVar("T")
Finish = Callable[[], torch.Tensor]
"""Waits for an operation under way and returns its result. Until then nobody may touch the tensor that was given."""


@dataclass(frozen=True)
class Group(ABC):
    """Some ranks as seen by one of them. Every collective must be called by every rank of the group.

    Three collectives make a group; the others have bodies made of them, which are right everywhere and which a group
    that can do better replaces.
    """

    rank: int
    """Index of this rank in the group."""
    size: int
    """Number of ranks in the group."""
    watch: Watch = field(default_factory=Watch, compare=False, repr=False, kw_only=True)
    """Tells a listener what goes over the wire; a group without a wire tells nothing."""

    @abstractmethod
    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Reduce in place over the group (op: sum | max) and return `tensor`."""

    @abstractmethod
    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return the ranks' tensors concatenated along `dim`: `[..., n, ...] -> [..., size * n, ...]`."""

    @abstractmethod
    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Sum over the group and return this rank's chunk along `dim`: `[..., n, ...] -> [..., n / size, ...]`."""

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """Hand chunk i along dimension 0 to rank i; return those received, in rank order: `[n, ...] -> [n, ...]`."""
        chunk_length(tensor, 0, self.size)
        chunks = self.all_gather(tensor).chunk(self.size * self.size)
        return torch.cat(chunks[self.rank :: self.size])

    def all_to_all_parts(self, parts: Sequence[torch.Tensor], receives: Sequence[int]) -> list[torch.Tensor]:
        """Hand part i, [n_i], to rank i; return those received, in rank order. No host sync on CUDA.

        Args:
            parts: one a rank, of any sizes and one dtype.
            receives: elements that each rank hands to this one.
        """
        longest = torch.tensor(max(part.numel() for part in parts), device=parts[0].device)
        length = int(self.all_reduce(longest, op="max"))
        padded = [torch.nn.functional.pad(part, (0, length - part.numel())) for part in parts]
        chunks = self.all_to_all(torch.cat(padded)).chunk(self.size) if length else [parts[0]] * self.size
        return [chunk.narrow(0, 0, count) for chunk, count in zip(chunks, receives, strict=True)]

    def send_receive(self, tensor: torch.Tensor, to: int, source: int) -> torch.Tensor:
        """Hand `tensor` to rank `to` and return the one of rank `source`, which has the same shape and dtype.

        A collective: every rank hands one to another one, or all keep their own. A ring is `to=rank + 1`,
        `source=rank - 1`, modulo `size`.
        """
        self._check_peer(to)
        self._check_peer(source)
        return self.all_gather(tensor.unsqueeze(0))[source]

    def start_all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> Finish:
        """Begin to reduce in place over the group. No host sync on CUDA, where the current stream waits."""
        result = self.all_reduce(tensor, op)
        return lambda: result

    def start_all_gather(self, tensor: torch.Tensor) -> Finish:
        """Begin to gather along dimension 0: `[n, ...] -> [size * n, ...]`. No host sync on CUDA."""
        result = self.all_gather(tensor)
        return lambda: result

    def start_reduce_scatter(self, tensor: torch.Tensor) -> Finish:
        """Begin to sum and scatter along dimension 0: `[size * n, ...] -> [n, ...]`. No host sync on CUDA."""
        result = self.reduce_scatter(tensor)
        return lambda: result

    def start_all_to_all(self, tensor: torch.Tensor) -> Finish:
        """Begin `all_to_all`. No host sync on CUDA."""
        result = self.all_to_all(tensor)
        return lambda: result

    def start_send_receive(self, tensor: torch.Tensor, to: int, source: int) -> Finish:
        """Begin `send_receive`. No host sync on CUDA."""
        result = self.send_receive(tensor, to, source)
        return lambda: result

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Send a message to one rank of the group, which calls `receive`. Waits until it is taken. No collective."""
        self._check_peer(to)
        raise ValueError(f"rank {self.rank} of {self.size} has nobody to send to in a {type(self).__name__}")

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Receive one rank's message into `tensor`, which has the message's shape and dtype, and return it."""
        self._check_peer(source)
        raise ValueError(f"rank {self.rank} of {self.size} has nobody to hear from in a {type(self).__name__}")

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's value, in rank order; they must be picklable. Collective; needs tensors on the host."""
        if self.size == 1:
            return [value]
        mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        lengths = self.all_gather(torch.tensor([mine.numel()])).tolist()
        padded = torch.nn.functional.pad(mine, (0, max(lengths) - mine.numel()))
        everyone = self.all_gather(padded.unsqueeze(0))
        return [pickle.loads(row[:length].numpy().tobytes()) for row, length in zip(everyone, lengths, strict=True)]

    @property
    def handle(self) -> dist.ProcessGroup:
        """The torch process group, for code that communicates over it itself, as DeepSpeed does."""
        raise TypeError(f"a {type(self).__name__} has no process group")

    def _check_peer(self, rank: int) -> None:
        if not 0 <= rank < self.size:
            raise ValueError(f"a peer must be in [0, {self.size}), but is {rank}")


def reduce_op(op: str) -> dist.ReduceOp.RedOpType:
    """Return torch's name of an operation.

    Raises:
        ValueError: it is neither sum nor max.
    """
    if op not in ("sum", "max"):
        raise ValueError(f"op must be sum or max, but is {op}")
    return dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM


def chunk_length(tensor: torch.Tensor, dim: int, size: int) -> int:
    """Return the length along `dim` of one of `size` equal parts.

    Raises:
        ValueError: the parts would not be equal.
    """
    length = tensor.shape[dim]
    if length % size:
        raise ValueError(f"dimension {dim} of {tuple(tensor.shape)} must be divisible by {size} ranks")
    return length // size


@dataclass(frozen=True)
class SingleGroup(Group):
    """A group of one: every collective is the identity."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Return `tensor`."""
        reduce_op(op)
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return `tensor`."""
        return tensor

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return `tensor`."""
        return tensor


@dataclass(frozen=True)
class FakeGroup(Group):
    """Rank `rank` of `size` without peers: shapes are those of a real group, values see only this rank.

    all_reduce returns the input, all_gather repeats it `size` times, reduce_scatter takes this rank's chunk.
    """

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be in [0, {self.size}), but is {self.rank}")

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        """Return `tensor`."""
        reduce_op(op)
        return tensor

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return `size` copies along `dim`."""
        return torch.cat([tensor] * self.size, dim=dim)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Return this rank's chunk along `dim`."""
        chunk_length(tensor, dim, self.size)
        return tensor.chunk(self.size, dim=dim)[self.rank].contiguous()


@dataclass(frozen=True, kw_only=True)
class ParallelGroups:
    """This rank's place in the mesh, and its groups of ranks, named by what they are for."""

    mesh: Mesh
    rank: int
    """Global rank."""
    device: torch.device
    world: Group
    """All ranks, on the device."""
    control: Group
    """All ranks, on the host: for agreement on errors, stops and measurements, which never touches the device."""
    pipeline: Group
    """Ranks that hand hidden states on to each other."""
    samples: Group
    """Ranks that read different samples: the place in it decides which ones this rank reads."""
    gradients: Group
    """Ranks that average gradients, and hold the same weights."""
    tensor: Group
    """Ranks that share each tensor."""

    @property
    def place(self) -> Coordinate:
        """This rank's place in the mesh."""
        return self.mesh.coordinate(self.rank)

    @property
    def is_reporting_rank(self) -> bool:
        """True on the one rank that prints and writes shared files: global rank 0."""
        return self.rank == 0


def single_process_groups(device: torch.device | None = None) -> ParallelGroups:
    """Return groups for one process without torch.distributed."""
    one = SingleGroup()
    return ParallelGroups(
        mesh=Mesh(1, 1, 1),
        rank=0,
        device=device or torch.device("cpu"),
        **dict.fromkeys(("world", "control", "pipeline", "samples", "gradients", "tensor"), one),
    )
