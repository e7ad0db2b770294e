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

    Statistics are taken in fp32. If each rank sees a part of what is normalised, such as a shard of the sequence, then
    backward all-reduces the gradients of weight and bias over the tensor-parallel group; otherwise there is no
    collective.

    Args:
        name: global name, `<name>.weight` and `<name>.bias`.
        spec: its kind, and which of the two parameters it has.
        context: the model's context.
        sees_a_part: each rank's gradients of weight and bias are a part of the whole; None: with sequence parallelism.
    """

    def __init__(self, name: str, spec: NormSpec, context: TensorContext, sees_a_part: bool | None = None) -> None:
        super().__init__()
        self.kind = spec.kind
        self.eps = spec.eps
        self.offset = spec.offset
        self.group = context.tensor
        self.sees_a_part = context.sequence_parallel if sees_a_part is None else sees_a_part
        self.pointwise = Pointwise()
        made = context.parameters(spec.tensors(name))
        self.weight = made.get("weight")
        self.bias = made.get("bias")

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        weight, bias = self.parameters_in_use()
        if self.offset and weight is not None:
            if hidden.dtype is not torch.float32:
                return self._offset_in_fp32(hidden, weight, bias)
            weight = weight + self.offset
        return self._normalised(hidden, weight, bias)

    def parameters_in_use(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return weight and bias, whose gradients are completed in backward."""
        weight: torch.Tensor | None = self.weight
        bias: torch.Tensor | None = self.bias
        if self.sees_a_part:
            weight = None if weight is None else complete_gradient(weight, self.group)
            bias = None if bias is None else complete_gradient(bias, self.group)
        return weight, bias

    def _normalised(self, hidden: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        # Every kernel accumulates half-precision inputs in fp32 without keeping an fp32 copy of the input.
        if self.kind is NormKind.layernorm:
            return self.pointwise.layer_norm(hidden, weight, bias, self.eps)
        return self.pointwise.rms_norm(hidden, weight, self.eps)

    def _offset_in_fp32(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Scale in fp32: in half precision, 1 + weight would lose the weight's last bits."""
        scaled = self._normalised(hidden, None, None).float() * (weight.float() + self.offset)
        return (scaled if bias is None else scaled + bias.float()).to(hidden.dtype)


class FinalNorm(Norm):
    """The norm behind the last block: a layer of its own, and so handed the micro-batch like every other."""

    def forward(self, hidden: torch.Tensor, batch: MicroBatch | None = None) -> torch.Tensor:
        """Normalise the last dimension, every position by itself."""
        return super().forward(hidden)
