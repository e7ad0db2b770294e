"""The feed-forward half of a block; its inner width is cut over the tensor-parallel group.

Source: arXiv 1706.03762; SwiGLU arXiv 2002.05202; tensor parallelism Megatron-LM arXiv 1909.08053, section 3.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trainer.config.schema import ActivationKind
from trainer.kernels.pointwise import Pointwise
from trainer.model.context import ModelContext
from trainer.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear


def activate(hidden: torch.Tensor, kind: ActivationKind, pointwise: Pointwise) -> torch.Tensor:
    """Apply the non-linearity; swiglu halves the last dimension (first half: gate, second half: up)."""
    if kind is ActivationKind.swiglu:
        gate, up = hidden.chunk(2, dim=-1)
        return pointwise.silu_times(gate, up)
    if kind is ActivationKind.relu:
        return F.relu(hidden)
    return F.gelu(hidden, approximate="tanh" if kind is ActivationKind.gelu_tanh else "none")


class MLP(nn.Module):
    """Up, activate, down: `[S, B, H] -> [S, B, H]` (`[S/tp, B, H]` with sequence parallelism).

    Collective as its column- and row-parallel linear layers are.

    Args:
        name: global name; parameters `<name>.up.*` (swiglu: `<name>.gate_up.*`, gate rows first) and `<name>.down.*`.
        context: of the model.
    """

    def __init__(self, name: str, context: ModelContext) -> None:
        super().__init__()
        spec = context.spec
        self.kind = spec.activation
        self.pointwise = Pointwise()
        gated = spec.activation is ActivationKind.swiglu
        self.first = "gate_up" if gated else "up"
        inner = ColumnParallelLinear(
            f"{name}.{self.first}",
            spec.hidden_size,
            (spec.ffn_hidden_size,) * (2 if gated else 1),
            context,
            bias=spec.bias,
            init_std=spec.init_std,
        )
        self.add_module(self.first, inner)
        self.down = RowParallelLinear(
            f"{name}.down",
            spec.ffn_hidden_size,
            spec.hidden_size,
            context,
            bias=spec.bias,
            init_std=context.residual_std,
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Transform every position by itself."""
        inner: torch.Tensor = self.get_submodule(self.first)(hidden)
        output: torch.Tensor = self.down(activate(inner, self.kind, self.pointwise))
        return output
