"""One pre-norm transformer block.

Source: pre-norm as in GPT-2 (Radford et al. 2019); recomputation arXiv 1604.06174, selective arXiv 2205.05198.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.config.schema import RecomputeKind
from trainer.model.attention import Attention
from trainer.model.cache import KeyValueCache
from trainer.model.context import ModelContext
from trainer.model.mlp import MLP
from trainer.model.norm import Norm
from trainer.tensor_parallel.random import MicroBatchPlace, hidden_dropout


class Block(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)): `[S, B, H] -> [S, B, H]` (`[S/tp, B, H]` sequence-parallel).

    With model.recompute=full, backward computes the block again, its forward collectives included.

    Args:
        name: global name.
        context: of the model.
    """

    def __init__(self, name: str, context: ModelContext) -> None:
        super().__init__()
        spec = context.spec
        self.name = name
        self.group = context.tensor
        self.clock = context.clock
        self.sequence_parallel = context.sequence_parallel
        self.dropout = spec.dropout
        self.has_dropout = spec.dropout > 0 or spec.attention_dropout > 0
        self.recompute = spec.recompute is RecomputeKind.full
        self.attention_norm = Norm(f"{name}.attention_norm", context)
        self.attention = Attention(f"{name}.attention", context)
        self.mlp_norm = Norm(f"{name}.mlp_norm", context)
        self.mlp = MLP(f"{name}.mlp", context)
        self._transform = self._forward

    def compile_transform(self) -> None:
        """Let torch.compile make the block's program at its first call; blocks of the same kind share it."""
        self._transform = torch.compile(self._forward, dynamic=False)

    def forward(self, hidden: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Return the block's output for one micro-batch."""
        # Counted here, outside the recomputed region: recomputing must see the same micro-batch.
        place = self.clock.next_micro_batch(self.name) if self.training and self.has_dropout else None
        if self.recompute and self.training and torch.is_grad_enabled():
            recomputed = checkpoint(
                self._transform, hidden, place, cache, use_reentrant=False, preserve_rng_state=False
            )
            return cast(torch.Tensor, recomputed)
        if cache is not None:
            # Lengths change with every token; compiling each of them anew would take longer than it saves.
            return self._forward(hidden, place, cache)
        return self._transform(hidden, place, None)

    def _forward(
        self, hidden: torch.Tensor, place: MicroBatchPlace | None, cache: KeyValueCache | None
    ) -> torch.Tensor:
        attended = self.attention(self.attention_norm(hidden), place, cache)
        hidden = hidden + self._dropped(attended, place, "attention")
        return hidden + self._dropped(self.mlp(self.mlp_norm(hidden)), place, "mlp")

    def _dropped(self, hidden: torch.Tensor, place: MicroBatchPlace | None, part: str) -> torch.Tensor:
        # Leaves before it reads the name: torch.compile would otherwise compile every block anew.
        if place is None or self.dropout == 0:
            return hidden
        first = hidden.shape[0] * self.group.rank if self.sequence_parallel else 0
        return hidden_dropout(hidden, self.dropout, place, f"{self.name}.{part}", first)
