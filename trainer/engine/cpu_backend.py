"""The backend of DeepSpeed's collectives between CPU ranks: messages between pairs, like those of our own groups.

gloo's all-gather and reduce-scatter go through a buffer as large as the whole result, which for the weights of a model
is as much memory as the model, and take about ten times as long (`trainer.topology.exchange`). DeepSpeed calls one
object for all of its collectives; this is that object for CPU ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import deepspeed.comm.comm as deepspeed_comm
import torch
import torch.distributed as dist
from deepspeed.comm.torch import TorchBackend

from trainer.topology.exchange import Peers, pays

LARGEST_SLICE = 1 << 22
"""Number of elements that are summed at once."""


class Pending:
    """A collective under way, as DeepSpeed expects it of torch."""

    def __init__(self, finish: Callable[[], object]) -> None:
        self._finish: Callable[[], object] | None = finish

    def wait(self) -> None:
        """Wait for the result. Does nothing the second time."""
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()

    def is_completed(self) -> bool:
        """Return whether somebody has waited: the messages progress only then."""
        return self._finish is None


class MessageBackend(TorchBackend):  # type: ignore[misc]
    """DeepSpeed's torch backend, but large sums and gathers of contiguous tensors are messages between pairs."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__("gloo", timeout, None)
        self._peers: dict[str, Peers] = {}

    def all_gather_into_tensor(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        """Gather the ranks' tensors of [n] into [size * n]; `input_tensor` may be this rank's part of the output."""
        peers = self._by_messages(group, input_tensor, output_tensor)
        if peers is None:
            return super().all_gather_into_tensor(output_tensor, input_tensor, group, async_op)
        finish = peers.start_all_gather(input_tensor.detach().view(-1), output_tensor.view(-1).chunk(peers.size))
        return _handed_over(finish, async_op)

    def reduce_scatter_tensor(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        """Sum the ranks' tensors of [size * n] and give each its [n]."""
        peers = (
            self._by_messages(group, output_tensor, input_tensor) if self._reduce_op(op) == dist.ReduceOp.SUM else None
        )
        if peers is None:
            return super().reduce_scatter_tensor(output_tensor, input_tensor, op, group, async_op)
        sum_up = peers.start_reduce_scatter(input_tensor.detach().view(-1).chunk(peers.size))
        return _handed_over(lambda: output_tensor.view(-1).copy_(sum_up()), async_op)

    def all_reduce(
        self, tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, async_op: bool = False
    ) -> Any:
        """Sum a tensor in place, slice after slice: receiving a slice needs as much memory again."""
        peers = self._by_messages(group, tensor) if self._reduce_op(op) == dist.ReduceOp.SUM and not async_op else None
        if peers is None:
            return super().all_reduce(tensor, op, group, async_op)
        for part in torch.split(tensor.detach().view(-1), LARGEST_SLICE):
            peers.all_reduce(part)
        return None

    def _by_messages(self, group: Any, *tensors: torch.Tensor) -> Peers | None:
        """Return the group's ranks if messages are faster, else None."""
        if not all(pays(tensor) for tensor in tensors):
            return None
        handle: Any = dist.group.WORLD if group is None else group
        peers = self._peers.get(handle.group_name)
        if peers is None:
            ranks = tuple(dist.get_process_group_ranks(handle))
            peers = self._peers[handle.group_name] = Peers(handle, ranks.index(dist.get_rank()), ranks)
        return peers if peers.size > 1 else None


def _handed_over(finish: Callable[[], object], async_op: bool) -> Pending | None:
    pending = Pending(finish)
    if async_op:
        return pending
    pending.wait()
    return None


def speak_by_messages(timeout: timedelta) -> None:
    """Give DeepSpeed this backend, before `deepspeed.init_distributed`. torch.distributed must be up, with gloo."""
    if not isinstance(deepspeed_comm.cdb, MessageBackend):
        deepspeed_comm.cdb = MessageBackend(timeout)
