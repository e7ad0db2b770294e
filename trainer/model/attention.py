"""Causal multi-head attention with grouped keys and values; heads are sharded over the tensor-parallel group.

Source: arXiv 1706.03762; grouped queries arXiv 2305.13245; sliding window arXiv 2310.06825; tensor parallelism
Megatron-LM arXiv 1909.08053, section 3.
Shapes: S queries, K keys, B micro-batch, N query heads and M key/value heads on this rank, D head_dim.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.micro_batch import MicroBatch
from trainer.model.cache import KeyValueCache
from trainer.model.positions import rotate
from trainer.spec.execution import RecomputeKind
from trainer.spec.parts import Attention as AttentionSpec
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from trainer.tensor_parallel.random import attention_dropout, training_place


@lru_cache(maxsize=4)
def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which key each query may attend to, bool `[S, K]`: the queries are the last S of the K positions."""
    with torch.inference_mode(False), torch.no_grad():
        query = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
        key = torch.arange(num_keys, device=device).unsqueeze(0)
        allowed = key <= query
        return allowed if window is None else allowed & (key > query - window)


class Attention(nn.Module):
    """Self-attention: `[S, B, H] -> [S, B, H]` (`[S/tp, B, H]` with sequence parallelism).

    Collective as its column- and row-parallel linear layers are.

    Args:
        name: global name; parameters `<name>.qkv.*` (rows: all queries, all keys, all values) and `<name>.output.*`.
        spec: heads, positions, window and biases.
        context: the model's context.
    """

    def __init__(self, name: str, spec: AttentionSpec, context: TensorContext) -> None:
        super().__init__()
        group = context.tensor
        self.name = name
        self.head_dim = spec.head_dim
        self.num_heads = spec.num_heads // group.size
        self.num_key_value_heads = spec.num_key_value_heads // group.size
        self.first_head = group.rank * self.num_heads
        self.rope = spec.rope
        self.window = spec.window
        self.scale = spec.scale
        self.dropout = context.execution.attention_dropout
        self.recompute_core = context.execution.recompute is RecomputeKind.selective
        self.qkv = ColumnParallelLinear(f"{name}.qkv", spec.qkv, context)
        self.output = RowParallelLinear(f"{name}.output", spec.output, context)

    def forward(self, hidden: torch.Tensor, batch: MicroBatch, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Attend; `cache` holds earlier tokens."""
        query, key, value = self._heads(self.qkv(hidden), batch.positions)
        if cache is not None:
            key, value = cache.extend(self.name, key, value)
        if self.recompute_core and self.training and torch.is_grad_enabled():
            context = checkpoint(self._core, query, key, value, batch, use_reentrant=False, preserve_rng_state=False)
        else:
            context = self._core(query, key, value, batch)
        # [B, N, S, D] -> [S, B, N D]
        output: torch.Tensor = self.output(context.permute(2, 0, 1, 3).flatten(2))
        return output

    def _heads(self, qkv: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split `[S, B, (N + 2 M) D]` into queries `[B, N, S, D]`, keys and values `[B, M, S, D]`."""
        length, batch, _ = qkv.shape
        heads = qkv.view(length, batch, -1, self.head_dim)
        counts = [self.num_heads, self.num_key_value_heads, self.num_key_value_heads]
        query, key, value = torch.split(heads, counts, dim=2)
        if self.rope is not None:
            query, key = rotate(query, self.rope, positions), rotate(key, self.rope, positions)
        return query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)

    def _core(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return softmax(Q K^T / sqrt(D)) V, `[B, N, S, D]`."""
        num_queries, num_keys = query.shape[2], key.shape[2]
        windowed = self.window is not None and self.window < num_keys
        grouped = self.num_key_value_heads != self.num_heads
        if self.training and self.dropout > 0:
            return self._explicit(query, key, value, batch)
        if not windowed and num_queries in (1, num_keys):
            # A single query sees every key, and SDPA would align a causal mask with the first key.
            causal = num_queries > 1
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=causal, scale=self.scale, enable_gqa=grouped
            )
        mask = causal_mask(num_queries, num_keys, self.window, query.device)
        key, value = self._repeated(key), self._repeated(value)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)

    def _repeated(self, heads: torch.Tensor) -> torch.Tensor:
        repeats = self.num_heads // self.num_key_value_heads
        return heads if repeats == 1 else heads.repeat_interleave(repeats, dim=1)

    def _explicit(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Attention with dropout of its weights: fused kernels draw masks that depend on the layout."""
        key, value = self._repeated(key), self._repeated(value)
        mask = causal_mask(query.shape[2], key.shape[2], self.window, query.device)
        scaled = query / math.sqrt(self.head_dim) if self.scale is None else query * self.scale
        scores = scaled @ key.transpose(-1, -2)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        name = f"{self.name}.weights"
        weights = attention_dropout(weights, self.dropout, training_place(batch, name), name, self.first_head)
        return weights @ value
