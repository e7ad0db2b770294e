"""Where a token is: learned absolute positions, or rotary embedding of queries and keys.

Source: learned as in GPT (Radford et al. 2018); rotary arXiv 2104.09864 in the half-rotation layout of LLaMA's
Hugging Face weights.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from trainer.model.context import ModelContext
from trainer.spec.parts import Positions, Rope
from trainer.tensor_parallel.mappings import scatter_to_sequence
from trainer.tensor_parallel.random import hidden_dropout


class PositionLayer(nn.Module):
    """Adds learned positions (if the model has them) and applies the embedding dropout: `[S, B, H] -> [S, B, H]`.

    With sequence parallelism it works on `[S/tp, B, H]`, and backward all-gathers the position gradients over the
    tensor-parallel group, so that they are complete on every rank.

    Args:
        name: global name, `<name>.weight` for learned positions.
        spec: how many learned positions there are, if any.
        context: of the model.
    """

    def __init__(self, name: str, spec: Positions, context: ModelContext) -> None:
        super().__init__()
        self.name = name
        self.group = context.tensor
        self.clock = context.clock
        self.sequence_parallel = context.sequence_parallel
        self.max_length = spec.length
        self.dropout = context.execution.dropout
        self.weight = context.parameters(spec.tensors(name)).get("weight")

    def forward(self, hidden: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Add the positions `start, start + 1, ...` to the rows of hidden.

        Raises:
            ValueError: learned positions end before the sequence does.
        """
        shards = self.group.size if self.sequence_parallel else 1
        length = hidden.shape[0] * shards
        if self.weight is not None and self.max_length is not None:
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
def _rotary_table(start: int, length: int, rope: Rope, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    # Not a buffer: `module.half()` would cast it and blur late positions. Not an inference tensor: autograd saves it.
    with torch.inference_mode(False), torch.no_grad():
        exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32, device=device) / rope.dims
        positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
        angles = torch.outer(positions, 1.0 / rope.theta**exponents)
        return angles.cos(), angles.sin()


def rotate(heads: torch.Tensor, rope: Rope, start: int = 0) -> torch.Tensor:
    """Apply the rotary embedding to heads `[S, B, N, D]` at positions start .. start + S - 1; computed in fp32.

    Only the first `rope.dims` elements of a head are turned.
    """
    length, _, _, head_dim = heads.shape
    cos, sin = _rotary_table(start, length, rope, heads.device)
    cos, sin = cos[:, None, None, :], sin[:, None, None, :]
    half = rope.dims // 2
    low, high, rest = torch.split(heads, [half, half, head_dim - rope.dims], dim=-1)
    # The tables are fp32, so the products are too.
    turned = (low * cos - high * sin, high * cos + low * sin)
    if rope.dims == head_dim:
        return torch.cat(turned, dim=-1).to(heads.dtype)
    return torch.cat((*(part.to(heads.dtype) for part in turned), rest), dim=-1)
