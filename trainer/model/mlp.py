"""The feed-forward half of a block; its inner width is sharded over the tensor-parallel group.

Source: arXiv 1706.03762; SwiGLU arXiv 2002.05202; tensor parallelism Megatron-LM arXiv 1909.08053, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trainer.kernels.pointwise import Pointwise
from trainer.spec.parts import Activation, FeedForward
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear


def activate(hidden: torch.Tensor, kind: Activation) -> torch.Tensor:
    """Apply the non-linearity to every element."""
    if kind is Activation.silu:
        return F.silu(hidden)
    if kind is Activation.relu:
        return F.relu(hidden)
    if kind is Activation.relu2:
        return F.relu(hidden).square()
    return F.gelu(hidden, approximate="tanh" if kind is Activation.gelu_tanh else "none")


class MLP(nn.Module):
    """Up, activate, down: `[S, B, H] -> [S, B, H]` (`[S/tp, B, H]` with sequence parallelism).

    Collective as its column- and row-parallel linear layers are.

    Args:
        name: global name; parameters `<name>.up.*` (with a gate: `<name>.gate_up.*`, gate rows first) and
            `<name>.down.*`.
        spec: widths, activation, gate and biases.
        context: the model's context.
    """

    def __init__(self, name: str, spec: FeedForward, context: TensorContext) -> None:
        super().__init__()
        self.activation = spec.activation
        self.gated = spec.gated
        self.pointwise = Pointwise()
        self.first = spec.up_name
        self.add_module(self.first, ColumnParallelLinear(f"{name}.{self.first}", spec.up, context))
        self.down = RowParallelLinear(f"{name}.down", spec.down, context)

    def _activated(self, inner: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return activate(inner, self.activation)
        gate, up = inner.chunk(2, dim=-1)
        if self.activation is Activation.silu:
            return self.pointwise.silu_times(gate, up)
        return activate(gate, self.activation) * up

    def forward(self, hidden: torch.Tensor, local: bool = False) -> torch.Tensor:
        """Transform every position by itself.

        Args:
            hidden: input.
            local: leave communication at both ends to the caller: see the linear layers.
        """
        inner: torch.Tensor = self.get_submodule(self.first)(hidden, local)
        output: torch.Tensor = self.down(self._activated(inner), local)
        return output
