"""A group whose ranks are threads of this process: exact collectives and messages without processes.

Sums run in rank order, so that results are deterministic. A rank that fails or hangs breaks the barrier, and every
other rank fails within the time-out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import nn

from trainer.tensor_parallel.shard import joined_shards, shard_spec, unshard, without_padding
from trainer.topology.groups import Group, SingleGroup, chunk_length

T = TypeVar("T")
TIMEOUT_S = 20.0


@dataclass
class _Exchange:
    """What the ranks of one group share."""

    size: int
    barrier: threading.Barrier
    timeout_s: float = TIMEOUT_S
    slots: list[tuple[str, torch.Tensor] | None] = field(default_factory=list)
    letters: dict[tuple[int, int], SimpleQueue[torch.Tensor]] = field(default_factory=dict)
    """(from, to) -> messages on their way."""

    def __post_init__(self) -> None:
        self.letters = {(a, b): SimpleQueue() for a in range(self.size) for b in range(self.size)}

    def trade(self, rank: int, kind: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return copies of all ranks' tensors; every rank must be doing the same thing."""
        self.slots[rank] = (kind, tensor)
        self.barrier.wait()
        taken = [slot for slot in self.slots if slot is not None]
        described = {(name, tuple(value.shape), value.dtype) for name, value in taken}
        copies = [value.detach().clone() for _, value in taken]
        # Nobody may overwrite its tensor before everybody has copied it.
        self.barrier.wait()
        if len(described) != 1:
            raise RuntimeError(f"ranks must call the same collective, but call {sorted(map(str, described))}")
        return copies


@dataclass(frozen=True)
class ThreadGroup(Group):
    """One rank's view of the exchange."""

    exchange: _Exchange
    calls: list[str] = field(default_factory=list)
    """Names of the collectives that this rank called, in order."""

    def _trade(self, kind: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.calls.append(kind)
        return self.exchange.trade(self.rank, kind, tensor)

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        parts = self._trade(f"all_reduce_{op}", tensor)
        total = parts[0]
        for part in parts[1:]:
            total = torch.maximum(total, part) if op == "max" else total + part
        with torch.no_grad():
            return tensor.copy_(total)

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return torch.cat(self._trade(f"all_gather_{dim}", tensor), dim=dim)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        parts = self._trade(f"reduce_scatter_{dim}", tensor)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.chunk(self.size, dim=dim)[self.rank].clone()

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        chunk_length(tensor, 0, self.size)
        return torch.cat([part.chunk(self.size)[self.rank] for part in self._trade("all_to_all", tensor)])

    def send_receive(self, tensor: torch.Tensor, to: int, source: int) -> torch.Tensor:
        self._check_peer(to)
        self._check_peer(source)
        targets = [int(other) for other in self._trade("send_receive to", torch.tensor(to))]
        if sorted(targets) != list(range(self.size)) or targets[source] != self.rank:
            raise RuntimeError(f"every rank must hear from one that sends to it, but they send to {targets}")
        return self._trade("send_receive", tensor)[source]

    def send(self, tensor: torch.Tensor, to: int) -> None:
        self._check_peer(to)
        self.calls.append("send")
        self.exchange.letters[self.rank, to].put(tensor.detach().clone())

    def receive(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        self._check_peer(source)
        self.calls.append("receive")
        # Not to wait for ever for a rank that failed.
        letter = self.exchange.letters[source, self.rank].get(timeout=self.exchange.timeout_s)
        with torch.no_grad():
            return tensor.copy_(letter)


def run_ranks(size: int, function: Callable[[Group], T], timeout_s: float = TIMEOUT_S) -> list[T]:
    """Call `function(group)` on `size` threads and return the results in rank order.

    Raises whatever the first failing rank raised; a rank that waits for peers in vain fails after `timeout_s`.
    """
    if size == 1:
        return [function(SingleGroup())]
    exchange = _Exchange(size, threading.Barrier(size, timeout=timeout_s), timeout_s, [None] * size)
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}

    def body(rank: int) -> None:
        try:
            results[rank] = function(ThreadGroup(rank, size, exchange))
        except BaseException as error:
            failures[rank] = error
            exchange.barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=3 * timeout_s)
    causes = [error for error in failures.values() if not isinstance(error, threading.BrokenBarrierError)]
    if causes or failures:
        raise (causes or list(failures.values()))[0]
    if len(results) != size:
        raise TimeoutError(f"{size - len(results)} of {size} ranks did not return")
    return [results[rank] for rank in range(size)]


def local_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return this rank's parameters by global name."""
    return joined_shards((parameter, parameter.detach()) for parameter in module.parameters())


def local_gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return this rank's gradients by global name; every parameter must have one."""
    missing = [shard_spec(parameter).name for parameter in module.parameters() if parameter.grad is None]
    assert not missing, f"{missing} have no gradient"
    return joined_shards((one, one.grad.detach()) for one in module.parameters() if one.grad is not None)


def whole(modules: Sequence[nn.Module], per_rank: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Put the ranks' tensors together, vocabulary padding cut off; replicated ones must be equal bit for bit."""
    joined: dict[str, torch.Tensor] = {}
    for parameter in modules[0].parameters():
        spec = shard_spec(parameter)
        parts = [tensors[spec.name] for tensors in per_rank]
        if spec.dim is None:
            for part in parts[1:]:
                torch.testing.assert_close(part, parts[0], rtol=0, atol=0, msg=f"{spec.name} differs between ranks")
        joined[spec.name] = without_padding(unshard(parts, spec), spec)
    return joined
