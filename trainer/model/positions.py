"""Learned positions of tokens, and the dropout behind the embedding.

Source: GPT (Radford et al. 2018).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trainer.micro_batch import MicroBatch
from trainer.model.context import ModelContext
from trainer.spec.parts import Positions
from trainer.tensor_parallel.mappings import scatter_to_sequence
from trainer.tensor_parallel.random import hidden_dropout, sequence_rows, training_place


class PositionLayer(nn.Module):
    """Adds learned positions (if the model has them) and applies the embedding dropout: `[S, B, H] -> [S, B, H]`.

    With sequence parallelism it works on `[S/tp, B, H]`, and backward all-gathers the position gradients over the
    tensor-parallel group, so that they are complete on every rank.

    Args:
        name: global name, `<name>.weight` for learned positions.
        spec: number of learned positions, if any.
        context: the model's context.
    """

    def __init__(self, name: str, spec: Positions, context: ModelContext) -> None:
        super().__init__()
        self.name = name
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.max_length = spec.length
        self.offset = spec.offset
        self.dropout = context.execution.dropout
        self.weight = context.parameters(spec.tensors(name)).get("weight")

    def forward(self, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Add the positions of the batch to the rows of hidden.

        Raises:
            ValueError: a position is beyond the learned ones (checked on CPU only).
        """
        if self.weight is not None:
            positions = self._learned(self.weight, batch.positions)
            if self.sequence_parallel:
                positions = scatter_to_sequence(positions, self.group)
            hidden = hidden + positions
        if not self.training or self.dropout == 0:
            return hidden
        rows = sequence_rows(batch, self.group, self.sequence_parallel)
        return hidden_dropout(hidden, self.dropout, training_place(batch, self.name), self.name, rows)

    def _learned(self, weight: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the rows of positions `[1 or B, S]` as `[S, 1 or B, H]`."""
        if positions.device.type == "cpu" and self.max_length is not None and int(positions.max()) >= self.max_length:
            raise ValueError(
                f"a sequence must have at most model.seq_length ({self.max_length}) tokens with "
                f"model.position=learned, but has {int(positions.max()) + 1}"
            )
        return F.embedding(positions.t() + self.offset if self.offset else positions.t(), weight)
