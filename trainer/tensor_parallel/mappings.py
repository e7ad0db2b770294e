"""Autograd functions that move activations over the tensor-parallel group. Each states both of its directions.

Source: Megatron-LM, arXiv 1909.08053 (f and g); sequence-parallel twins, arXiv 2205.05198.
Every function is collective over the group in the directions where it communicates: all ranks must call it, and run
backward through it, in the same order. None syncs the host. A group of one communicates nothing.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from trainer.errors import ConfigError
from trainer.topology.groups import Group

SEQUENCE_DIM = 0


def _sum(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    # The group reduces in place; autograd may hold other references to `tensor`.
    return group.all_reduce(tensor.clone(memory_format=torch.contiguous_format))


def _check_divisible(length: int, group: Group) -> None:
    if length % group.size:
        raise ConfigError(
            f"the sequence length ({length}) must be divisible by layout.tensor_parallel_size ({group.size}) with "
            f"layout.sequence_parallel=true; change model.seq_length or turn sequence_parallel off"
        )


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum(grads[0], ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        return _sum(tensor, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class _SumBoth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return _sum(tensor, group)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _sum(grads[0], ctx.group), None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return group.all_gather(tensor, dim=SEQUENCE_DIM)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.reduce_scatter(grads[0].contiguous(), dim=SEQUENCE_DIM), None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return tensor.chunk(group.size, dim=SEQUENCE_DIM)[group.rank].clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.all_gather(grads[0].contiguous(), dim=SEQUENCE_DIM), None


class _ReduceScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return group.reduce_scatter(tensor, dim=SEQUENCE_DIM)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.group.all_gather(grads[0].contiguous(), dim=SEQUENCE_DIM), None


def _apply(function: type[torch.autograd.Function], tensor: torch.Tensor, group: Group) -> torch.Tensor:
    if group.size == 1:
        return tensor
    return cast(torch.Tensor, function.apply(tensor, group))  # type: ignore[no-untyped-call]


def reduce_from_tensor_parallel(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """Megatron's g: all-reduce forward, identity backward. Behind a row-parallel matrix."""
    return _apply(_Reduce, tensor, group)


def enter_tensor_parallel(tensor: torch.Tensor, group: Group, sequence_parallel: bool) -> torch.Tensor:
    """Megatron's f, before column-parallel matrices that multiply `local`: identity forward, all-reduce backward.

    With sequence parallelism `[S/tp, ...] -> [S, ...]`: all-gather forward, reduce-scatter backward.
    """
    return _apply(_GatherSequence if sequence_parallel else _Copy, tensor, group)


def leave_tensor_parallel(tensor: torch.Tensor, group: Group, sequence_parallel: bool) -> torch.Tensor:
    """Add partial sums over the ranks, behind row-parallel matrices: g, or its twin `[S, ...] -> [S/tp, ...]`."""
    if sequence_parallel and group.size > 1:
        return reduce_scatter_to_sequence(tensor, group)
    return reduce_from_tensor_parallel(tensor, group)


def scatter_to_sequence(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """`[S, ...] -> [S/tp, ...]` of a replicated tensor: slice forward, all-gather backward.

    Raises:
        ConfigError: S is not divisible by the group's size.
    """
    _check_divisible(tensor.shape[SEQUENCE_DIM], group)
    return _apply(_ScatterSequence, tensor, group)


def reduce_scatter_to_sequence(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """`[S, ...] -> [S/tp, ...]` of partial sums: reduce-scatter forward, all-gather backward. g's twin.

    Raises:
        ConfigError: S is not divisible by the group's size.
    """
    _check_divisible(tensor.shape[SEQUENCE_DIM], group)
    return _apply(_ReduceScatterSequence, tensor, group)


def complete_gradient(parameter: torch.Tensor, group: Group) -> torch.Tensor:
    """Identity forward, all-reduce backward: for a replicated parameter used on a sequence shard.

    Each rank's gradient covers its own positions only; the sum is complete and equal on every rank.
    """
    return _apply(_Copy, parameter, group)


def sum_over_ranks(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """All-reduce forward and backward: for a sum that every rank goes on computing with, each for its own shard.

    The gradient of the sum is that of all ranks' uses of it.
    """
    return _apply(_SumBoth, tensor, group)
