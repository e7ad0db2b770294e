"""The head: the last matrix, with its vocabulary cut over the tensor-parallel group."""

from __future__ import annotations

import torch

from trainer.kernels.loss_programs import LossPrograms
from trainer.tensor_parallel.fused_loss import vocab_parallel_linear_cross_entropy
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.linear import ColumnParallelLinear


class VocabParallelHead(ColumnParallelLinear):
    """Hidden `[S, B, H]` (`[S/tp, B, H]` with sequence parallelism) to this rank's logits `[S, B, V/tp]`.

    With labels to the loss. Collective as a column-parallel linear layer, or as `vocab_parallel_linear_cross_entropy`.

    Args:
        name: global name, `<name>.weight`.
        vocab_size: ids that exist.
        padded_vocab_size: rows over all ranks.
        hidden_size: H.
        context: with sequence parallelism hidden is a sequence shard.
        init_std: standard deviation of the weight at start.

    Raises:
        ConfigError: padded_vocab_size is not divisible by the group's size.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int,
        padded_vocab_size: int,
        hidden_size: int,
        context: TensorContext,
        *,
        init_std: float,
    ) -> None:
        super().__init__(
            name,
            hidden_size,
            (padded_vocab_size,),
            context,
            bias=False,
            init_std=init_std,
            padding=padded_vocab_size - vocab_size,
        )
        self.vocab_size = vocab_size
        self.programs: LossPrograms | None = None

    def forward(self, hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits, or with labels `[B, S]` the mean loss, [] fp32."""
        if labels is None:
            return super().forward(hidden)
        return vocab_parallel_linear_cross_entropy(
            hidden, self.weight, labels, self.group, self.vocab_size, self.sequence_parallel, self.programs
        )
