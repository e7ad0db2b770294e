"""The head: the last matrix, with its vocabulary cut over the tensor-parallel group."""

from __future__ import annotations

import torch
from torch import nn

from trainer.kernels.loss_programs import LossPrograms
from trainer.spec.parts import Head
from trainer.tensor_parallel.fused_loss import vocab_parallel_linear_cross_entropy
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.linear import column_parallel_linear


class VocabParallelHead(nn.Module):
    """Hidden `[S, B, H]` (`[S/tp, B, H]` with sequence parallelism) to this rank's logits `[S, B, V/tp]`.

    With labels to the loss. Collective as a column-parallel linear layer, or as `vocab_parallel_linear_cross_entropy`.

    Args:
        name: global name, `<name>.weight`.
        spec: ids that exist, and H.
        context: with sequence parallelism hidden is a sequence shard.

    Raises:
        ConfigError: the padded vocabulary is not divisible by the group's size.
    """

    def __init__(self, name: str, spec: Head, context: TensorContext) -> None:
        super().__init__()
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.vocab_size = spec.vocab_size
        self.programs: LossPrograms | None = None
        self.weight = context.parameters(spec.tensors(name))["weight"]

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits, or with labels `[B, S]` the mean loss, [] fp32."""
        if labels is None:
            return column_parallel_linear(hidden, self.weight, None, self.group, self.sequence_parallel)
        return vocab_parallel_linear_cross_entropy(
            hidden, self.weight, labels, self.group, self.vocab_size, self.sequence_parallel, self.programs
        )
