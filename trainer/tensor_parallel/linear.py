"""Linear layers whose weight is sharded over the tensor-parallel group.

Source: Megatron-LM, arXiv 1909.08053, section 3; with sequence parallelism arXiv 2205.05198, section 4.2.2.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from trainer.kernels.gemm import has_own_products, products_of
from trainer.spec.parts import Linear
from trainer.tensor_parallel.adapters import column_adapters, row_adapters
from trainer.tensor_parallel.gradients import adds_in_place, weight_gradient
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.mappings import SEQUENCE_DIM, complete_gradient, leave_tensor_parallel
from trainer.tensor_parallel.shared_heads import shared_heads, with_shared
from trainer.topology.groups import Group


def _keep(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> None:
    """Keep what backward needs.

    The weight is kept twice: a checkpoint hands back a tensor with the same numbers, which knows neither its GEMM
    library nor where its gradient goes.
    """
    ctx.save_for_backward(hidden if ctx.needs_input_grad[1] else None, weight)
    ctx.parameter = weight


def _input_gradient(ctx: Any, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient of the inputs, before it is summed over ranks; None if nobody wants it."""
    return products_of(ctx.parameter).input_gradient(grad, weight) if ctx.needs_input_grad[0] else None


def _parameter_gradients(
    ctx: Any, grad: torch.Tensor, inputs: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of weight and bias, in the second and third place of a function's inputs.

    None: frozen, or (the weight) added in place. `inputs` is None where the weight is frozen.
    """
    flat = grad.flatten(0, -2)
    grad_weight = None if inputs is None else weight_gradient(ctx.parameter, flat, inputs.flatten(0, -2))
    return grad_weight, flat.sum(dim=0) if ctx.needs_input_grad[2] else None


class _ColumnParallel(torch.autograd.Function):
    """f and the GEMM in one, so that the messages of backward travel while it multiplies."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: Group
    ) -> torch.Tensor:
        _keep(ctx, hidden, weight)
        ctx.group = group
        return products_of(weight).forward(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0]
        partial = _input_gradient(ctx, weight, grad)
        finish = ctx.group.start_all_reduce(partial) if partial is not None else None
        grad_weight, grad_bias = _parameter_gradients(ctx, grad, hidden)
        return finish() if finish else None, grad_weight, grad_bias, None


class _GatheredLinear(torch.autograd.Function):
    """Gather the sequence, multiply. Keeps only the shard for backward and gathers it again there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: Group
    ) -> torch.Tensor:
        _keep(ctx, hidden, weight)
        ctx.group = group
        return products_of(weight).forward(group.all_gather(hidden, dim=SEQUENCE_DIM), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0]
        # Only the weight's gradient needs the whole sequence.
        gathered = ctx.group.start_all_gather(hidden) if ctx.needs_input_grad[1] else None
        partial = _input_gradient(ctx, weight, grad)
        whole = gathered() if gathered else None
        reduced = ctx.group.start_reduce_scatter(partial) if partial is not None else None
        grad_weight, grad_bias = _parameter_gradients(ctx, grad, whole)
        return reduced() if reduced else None, grad_weight, grad_bias, None


class _Linear(torch.autograd.Function):
    """`F.linear` of one rank, by the weight's own GEMM library; its weight's gradient may be added in place."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        _keep(ctx, hidden, weight)
        return products_of(weight).forward(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0]
        return _input_gradient(ctx, weight, grad), *_parameter_gradients(ctx, grad, hidden)


def linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply on this rank: `[..., in] -> [..., out]`. No collective."""
    if adds_in_place(weight) or has_own_products(weight):
        return cast(torch.Tensor, _Linear.apply(hidden, weight, bias))  # type: ignore[no-untyped-call]
    return F.linear(hidden, weight, bias)


def column_parallel_linear(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, group: Group, sequence_parallel: bool
) -> torch.Tensor:
    """Multiply hidden with this rank's rows of a weight: `[S, B, in] -> [S, B, out/tp]`.

    With sequence parallelism hidden is `[S/tp, B, in]`: all-gather in forward, and again in backward, which spares
    keeping `[S, B, in]`; reduce-scatter in backward. Otherwise an all-reduce in backward. The messages of backward
    travel while a GEMM runs. No host sync.
    """
    if group.size == 1:
        return linear(hidden, weight, bias)
    function = _GatheredLinear if sequence_parallel else _ColumnParallel
    return cast(torch.Tensor, function.apply(hidden, weight, bias, group))  # type: ignore[no-untyped-call]


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b with the rows of W (output features) sharded over the group.

    Input `[S, B, in_features]`, or `[S/tp, B, in_features]` with sequence parallelism (gathered here). Output
    `[S, B, out/tp]`, block after block as in `sections`. Collective as `column_parallel_linear` is.

    Blocks with fewer heads than ranks are held whole by every rank, in a parameter of their own, and each rank
    multiplies with one of their heads. Backward all-reduces the gradient of that parameter, which several ranks use.

    Args:
        name: global name, `<name>.weight` and `<name>.bias` (sharded like the rows).
        spec: widths, and whether it has a bias.
        context: with sequence parallelism the input is a sequence shard.

    Raises:
        ConfigError: a section is not divisible by the group's size.
    """

    def __init__(self, name: str, spec: Linear, context: TensorContext) -> None:
        super().__init__()
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        made = context.parameters(spec.own_tensors(name))
        self.weight = made["weight"]
        self.bias = made.get("bias")
        self.shared_weight = made.get("shared_weight")
        self.shared_bias = made.get("shared_bias")
        self.shared = shared_heads(spec, self.group)
        self.lora = column_adapters(name, spec, context)

    def forward(self, hidden: torch.Tensor, local: bool = False) -> torch.Tensor:
        """Return this rank's output features of the whole sequence.

        Args:
            hidden: input.
            local: the input is whole, behind `enter_tensor_parallel`: there is nothing to communicate here.
        """
        weight = with_shared(self.weight, self.shared_weight, self.shared, self.group)
        bias = None if self.bias is None else with_shared(self.bias, self.shared_bias, self.shared, self.group)
        if local:
            output = linear(hidden, weight, bias)
        else:
            output = column_parallel_linear(hidden, weight, bias, self.group, self.sequence_parallel)
        return output if self.lora is None else output + self.lora(hidden, local)


class RowParallelLinear(nn.Module):
    """y = x W^T + b with the columns of W (input features) sharded over the group.

    Input `[S, B, in/tp]`, output `[S, B, out_features]`, or `[S/tp, B, out_features]` with sequence parallelism.
    Collective in forward (all-reduce); with sequence parallelism reduce-scatter forward and all-gather backward. The
    bias is whole on every rank and added once, after the reduction.

    Args:
        name: global name, `<name>.weight` and `<name>.bias`.
        spec: widths, and whether it has a bias.
        context: with sequence parallelism the output is a sequence shard.

    Raises:
        ConfigError: in_features is not divisible by the group's size.
    """

    def __init__(self, name: str, spec: Linear, context: TensorContext) -> None:
        super().__init__()
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        made = context.parameters(spec.own_tensors(name))
        self.weight = made["weight"]
        self.bias = made.get("bias")
        self.lora = row_adapters(name, spec, context)

    def forward(self, hidden: torch.Tensor, local: bool = False) -> torch.Tensor:
        """Return the sum over ranks, plus the bias.

        Args:
            hidden: this rank's input features.
            local: return this rank's part of the sum; `leave_tensor_parallel` and `biased` must follow.
        """
        is_whole = self.group.size == 1 and not local
        output = linear(hidden, self.weight, self.bias if is_whole else None)
        if self.lora is not None:
            output = output + self.lora(hidden)
        if local or is_whole:
            return output
        return self.biased(leave_tensor_parallel(output, self.group, self.sequence_parallel))

    def biased(self, output: torch.Tensor) -> torch.Tensor:
        """Add the bias to the sum over ranks."""
        bias: torch.Tensor | None = self.bias
        if bias is not None and self.sequence_parallel:
            bias = complete_gradient(bias, self.group)
        return output if bias is None else output + bias
