"""Where a token is: learned absolute positions, or rotary embedding of queries and keys.

Source: learned as in GPT (Radford et al. 2018); rotary arXiv 2104.09864 in the half-rotation layout of LLaMA's
Hugging Face weights.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from trainer.config.schema import PositionKind
from trainer.model.context import ModelContext
from trainer.tensor_parallel.init import Initial
from trainer.tensor_parallel.mappings import scatter_to_sequence
from trainer.tensor_parallel.random import hidden_dropout
from trainer.tensor_parallel.shard import ShardSpec


class PositionLayer(nn.Module):
    """Adds learned positions (if the model has them) and applies the embedding dropout: `[S, B, H] -> [S, B, H]`.

    With sequence parallelism it works on `[S/tp, B, H]`, and backward all-gathers the position gradients over the
    tensor-parallel group, so that they are complete on every rank.

    Args:
        name: global name, `<name>.weight` for learned positions.
        context: of the model.
    """

    def __init__(self, name: str, context: ModelContext) -> None:
        super().__init__()
        spec = context.spec
        self.name = name
        self.group = context.tensor
        self.clock = context.clock
        self.sequence_parallel = context.sequence_parallel
        self.max_length = spec.seq_length
        self.dropout = spec.dropout
        self.weight: nn.Parameter | None = None
        if spec.position is PositionKind.learned:
            shape = (spec.seq_length, spec.hidden_size)
            self.weight = context.parameter(ShardSpec(f"{name}.weight", shape), Initial(spec.init_std))

    def forward(self, hidden: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Add the positions `start, start + 1, ...` to the rows of hidden.

        Raises:
            ValueError: learned positions end before the sequence does.
        """
        shards = self.group.size if self.sequence_parallel else 1
        length = hidden.shape[0] * shards
        if self.weight is not None:
            if start + length > self.max_length:
                raise ValueError(
                    f"a sequence must have at most model.seq_length ({self.max_length}) tokens with "
                    f"model.position=learned, but has {start + length}"
                )
            positions: torch.Tensor = self.weight[start : start + length]
            if self.sequence_parallel:
                positions = scatter_to_sequence(positions, self.group)
            hidden = hidden + positions.unsqueeze(1)
        place = self.clock.next_micro_batch(self.name) if self.training and self.dropout > 0 else None
        first = hidden.shape[0] * self.group.rank if self.sequence_parallel else start
        return hidden_dropout(hidden, self.dropout, place, self.name, first)


@lru_cache(maxsize=16)
def _rotary_table(
    start: int, length: int, head_dim: int, theta: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    # Not a buffer: `module.half()` would cast it and blur late positions. Not an inference tensor: autograd saves it.
    with torch.inference_mode(False), torch.no_grad():
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
        angles = torch.outer(positions, 1.0 / theta**exponents)
        return angles.cos(), angles.sin()


def rotate(heads: torch.Tensor, theta: float, start: int = 0) -> torch.Tensor:
    """Apply the rotary embedding to heads `[S, B, N, D]` at positions start .. start + S - 1; computed in fp32."""
    length, _, _, head_dim = heads.shape
    cos, sin = _rotary_table(start, length, head_dim, theta, heads.device)
    cos, sin = cos[:, None, None, :], sin[:, None, None, :]
    low, high = heads.chunk(2, dim=-1)
    # The tables are fp32, so the products are too.
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(heads.dtype)
