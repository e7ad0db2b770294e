"""Normalisation over the hidden dimension.

Source: LayerNorm arXiv 1607.06450; RMSNorm arXiv 1910.07467.
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.kernels.pointwise import Pointwise
from trainer.micro_batch import MicroBatch
from trainer.spec.parts import Norm as NormSpec
from trainer.spec.parts import NormKind
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.mappings import complete_gradient


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dimension, `[..., H] -> [..., H]` in the input's dtype.

    Statistics are taken in fp32. With sequence parallelism each rank sees a shard of the sequence, so backward
    all-reduces the gradients of weight and bias over the tensor-parallel group; otherwise there is no collective.

    Args:
        name: global name, `<name>.weight` and `<name>.bias`.
        spec: its kind, and which of the two parameters it has.
        context: the model's context.
    """

    def __init__(self, name: str, spec: NormSpec, context: TensorContext) -> None:
        super().__init__()
        self.kind = spec.kind
        self.eps = spec.eps
        self.offset = spec.offset
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.pointwise = Pointwise()
        made = context.parameters(spec.tensors(name))
        self.weight = made.get("weight")
        self.bias = made.get("bias")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        weight: torch.Tensor | None = self.weight
        bias: torch.Tensor | None = self.bias
        if self.sequence_parallel:
            weight = None if weight is None else complete_gradient(weight, self.group)
            bias = None if bias is None else complete_gradient(bias, self.group)
        if self.offset and weight is not None:
            weight = weight + self.offset
        # Every kernel accumulates half-precision inputs in fp32 without keeping an fp32 copy of the input.
        if self.kind is NormKind.layernorm:
            return self.pointwise.layer_norm(hidden, weight, bias, self.eps)
        return self.pointwise.rms_norm(hidden, weight, self.eps)


class FinalNorm(Norm):
    """The norm behind the last block: a layer of its own, and so handed the micro-batch like every other."""

    def forward(self, hidden: torch.Tensor, batch: MicroBatch | None = None) -> torch.Tensor:
        """Normalise the last dimension, every position by itself."""
        return super().forward(hidden)
