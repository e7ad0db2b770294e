"""Normalisation over the hidden dimension.

Source: LayerNorm arXiv 1607.06450; RMSNorm arXiv 1910.07467.
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.config.schema import NormKind
from trainer.kernels.pointwise import Pointwise
from trainer.model.context import ModelContext
from trainer.tensor_parallel.init import ONE, ZERO
from trainer.tensor_parallel.mappings import complete_gradient
from trainer.tensor_parallel.shard import ShardSpec


class Norm(nn.Module):
    """LayerNorm (with bias if the model has biases) or RMSNorm, `[..., H] -> [..., H]` in the input's dtype.

    Statistics are taken in fp32. With sequence parallelism each rank sees a shard of the sequence, so backward
    all-reduces the gradients of weight and bias over the tensor-parallel group; otherwise there is no collective.

    Args:
        name: global name, `<name>.weight` and `<name>.bias`.
        context: of the model.
    """

    def __init__(self, name: str, context: ModelContext) -> None:
        super().__init__()
        spec = context.spec
        self.kind = spec.norm
        self.eps = spec.norm_eps
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.pointwise = Pointwise()
        shape = (spec.hidden_size,)
        self.weight = context.parameter(ShardSpec(f"{name}.weight", shape), ONE)
        self.bias: nn.Parameter | None = None
        if spec.norm is NormKind.layernorm and spec.bias:
            self.bias = context.parameter(ShardSpec(f"{name}.bias", shape), ZERO)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        if self.sequence_parallel:
            weight = complete_gradient(weight, self.group)
            bias = None if bias is None else complete_gradient(bias, self.group)
        # Every kernel accumulates half-precision inputs in fp32 without keeping an fp32 copy of the input.
        if self.kind is NormKind.layernorm:
            return self.pointwise.layer_norm(hidden, weight, bias, self.eps)
        return self.pointwise.rms_norm(hidden, weight, self.eps)
