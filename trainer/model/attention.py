"""Causal multi-head attention with grouped keys and values; heads are sharded over the tensor-parallel group.

Source: arXiv 1706.03762; grouped queries arXiv 2305.13245; sliding window arXiv 2310.06825; linear biases (alibi) arXiv
2108.12409; tensor parallelism Megatron-LM arXiv 1909.08053, section 3.
Shapes: S queries, K keys, B micro-batch, N query heads and M key/value heads on this rank, D head_dim.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.kernels.document_attention import (
    added_mask_of_documents,
    attend,
    bias_of_documents,
    causal_mask,
    repeated_heads,
)
from trainer.micro_batch import MicroBatch
from trainer.model.cache import CachedPass, Seen
from trainer.model.norm import Norm
from trainer.model.query_key_norm import CutNorm, HeadNorm, normalised_over_ranks
from trainer.model.rotary import rotate
from trainer.spec.execution import RecomputeKind
from trainer.spec.parts import Attention as AttentionSpec
from trainer.spec.parts import Norm as NormSpec
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from trainer.tensor_parallel.random import attention_dropout, training_place


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Return by how much a step back lowers the scores of each head: a geometric sequence, as in the paper.

    For a number of heads that is no power of two, the slopes of the next lower power, and every other one of the next
    higher power: arXiv 2108.12409, and its code.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    base = 2.0 ** (-8.0 / lower)
    slopes = [base ** (index + 1) for index in range(lower)]
    between = 2.0 ** (-4.0 / lower)
    return (*slopes, *(between ** (2 * index + 1) for index in range(num_heads - lower)))


def alibi_bias(
    slopes: tuple[float, ...],
    num_queries: int,
    num_keys: int,
    window: int | None,
    like: tuple[torch.dtype, torch.device],
) -> torch.Tensor:
    """Return what is added to the scores, `[1, N, S, K]`: minus slope x distance, and -inf where a key is not seen.

    BLOOM adds slope x position of the key, which differs by a constant for each query: softmax does not see it, and
    distances are small where scores count. Layers that are alike share one; it is kept until another length comes.
    """
    kept = _kept_biases(slopes, window, like)
    found = kept.get((num_queries, num_keys))
    if found is None:
        # It has heads x S x K elements: prompts of several lengths would each leave one.
        kept.clear()
        dtype, device = like
        with torch.inference_mode(False), torch.no_grad():
            query = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
            steps = (torch.arange(num_keys, device=device).unsqueeze(0) - query).float()
            bias = torch.tensor(slopes, dtype=torch.float32, device=device).view(1, -1, 1, 1) * steps
            found = bias.masked_fill_(~causal_mask(num_queries, num_keys, window, device), -torch.inf).to(dtype)
        kept[num_queries, num_keys] = found
    return found


@lru_cache(maxsize=4)
def _kept_biases(
    _slopes: tuple[float, ...], _window: int | None, _like: tuple[torch.dtype, torch.device]
) -> dict[tuple[int, int], torch.Tensor]:
    """Return where the bias of layers that are alike is kept, by its numbers of queries and keys."""
    return {}


class Attention(nn.Module):
    """Self-attention: `[S, B, H] -> [S, B, H]` (`[S/tp, B, H]` with sequence parallelism).

    Collective as its column- and row-parallel linear layers are, and as norms of queries and keys are.

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
        # Ranks of which there are more than key/value heads have one each, several the same.
        self.num_key_value_heads = max(1, spec.num_key_value_heads // group.size)
        self.first_head = group.rank * self.num_heads
        self.rope = spec.rope
        self.window = spec.window
        self.scale = spec.scale
        self.clip = spec.clip
        own = slice(self.first_head, self.first_head + self.num_heads)
        self.slopes = alibi_slopes(spec.num_heads)[own] if spec.alibi else None
        self.dropout = context.execution.attention_dropout
        self.recompute_core = context.execution.recompute is RecomputeKind.selective
        self.qkv = ColumnParallelLinear(f"{name}.qkv", spec.qkv, context)
        self.query_norm = _head_norm(f"{name}.query_norm", spec.query_norm, context)
        self.key_norm = _head_norm(f"{name}.key_norm", spec.key_norm, context)
        self.output = RowParallelLinear(f"{name}.output", spec.output, context)

    def forward(
        self, hidden: torch.Tensor, batch: MicroBatch, cache: CachedPass | None = None, local: bool = False
    ) -> torch.Tensor:
        """Attend; `cache` holds earlier tokens.

        Args:
            hidden: input.
            batch: the micro-batch.
            cache: the pass that keeps keys and values, and knows earlier ones.
            local: leave communication at both ends to the caller: see the linear layers.
        """
        before = () if cache is None else cache.lengths
        query, key, value = self._heads(self.qkv(hidden, local), batch.positions, before)
        if cache is not None:
            seen = cache.extend(self.name, key, value, self.window, with_steps=self.slopes is not None)
            context = self._of_cache(query, seen, batch)
        elif self.recompute_core and self.training and torch.is_grad_enabled():
            context = checkpoint(self._core, query, key, value, batch, use_reentrant=False, preserve_rng_state=False)
        else:
            context = self._core(query, key, value, batch)
        # [B, N, S, D] -> [S, B, N D]
        output: torch.Tensor = self.output(context.permute(2, 0, 1, 3).flatten(2), local)
        return output

    def _heads(
        self, qkv: torch.Tensor, positions: torch.Tensor, before: tuple[int, ...] = ()
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split `[S, B, (N + 2 M) D]` into queries `[B, N, S, D]`, keys and values `[B, M, S, D]`.

        Args:
            qkv: output of the projection.
            positions: position of each token.
            before: number of tokens that each text has in a cache; empty without one.
        """
        length, batch, _ = qkv.shape
        heads = qkv.view(length, batch, -1, self.head_dim)
        counts = [self.num_heads, self.num_key_value_heads, self.num_key_value_heads]
        query, key, value = torch.split(heads, counts, dim=2)
        query, key = self._normalised(query, key)
        if self.clip is not None:
            query, key, value = (part.clamp(-self.clip, self.clip) for part in (query, key, value))
        if self.rope is not None:
            lengths = tuple(known + length for known in before or (0,))
            query, key = (rotate(part, self.rope, positions, lengths) for part in (query, key))
        return query.permute(1, 2, 0, 3), key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)

    def _normalised(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalise queries `[S, B, N, D]` and keys `[S, B, M, D]`, each head or all heads of all ranks."""
        if self.query_norm is None or self.key_norm is None:
            return query, key
        if isinstance(self.query_norm, CutNorm):
            parts = ((self.query_norm, query.flatten(2)), (cast(CutNorm, self.key_norm), key.flatten(2)))
            wide = normalised_over_ranks(parts)
            return wide[0].view(query.shape), wide[1].view(key.shape)
        return self.query_norm(query), self.key_norm(key)

    def _core(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return softmax(Q K^T / sqrt(D)) V, `[B, N, S, D]`."""
        num_queries, num_keys = query.shape[2], key.shape[2]
        windowed = self.window is not None and self.window < num_keys
        grouped = self.num_key_value_heads != self.num_heads
        if self.training and self.dropout > 0:
            return self._explicit(query, key, value, batch)
        if batch.documents is not None:
            bias = self._bias(num_queries, num_keys, query)
            return attend(query, key, value, batch.documents, self.window, self.scale, bias)
        plain = self.slopes is None and not windowed
        if plain and num_queries in (1, num_keys):
            # A single query sees every key, and SDPA would align a causal mask with the first key.
            causal = num_queries > 1
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=causal, scale=self.scale, enable_gqa=grouped
            )
        key, value = self._repeated(key), self._repeated(value)
        mask = self._mask(query, key, batch)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)

    def _mask(self, query: torch.Tensor, key: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return which keys are seen, bool, or what is added to the scores; broadcasts to `[B, N, S, K]`."""
        bias = self._bias(query.shape[2], key.shape[2], query)
        if batch.documents is not None:
            if bias is None:
                return added_mask_of_documents(batch.documents, self.window, query.dtype)
            return bias_of_documents(bias, batch.documents)
        return causal_mask(query.shape[2], key.shape[2], self.window, query.device) if bias is None else bias

    def _bias(self, num_queries: int, num_keys: int, like: torch.Tensor) -> torch.Tensor | None:
        if self.slopes is None:
            return None
        return alibi_bias(self.slopes, num_queries, num_keys, self.window, (like.dtype, like.device))

    def _of_cache(self, query: torch.Tensor, seen: Seen, batch: MicroBatch) -> torch.Tensor:
        """Attend to what a cache holds: queries of several tokens begin a text, a single one sees every key that is."""
        if query.shape[2] > 1:
            return self._core(query, seen.keys, seen.values, batch)
        bias = seen.mask
        if self.slopes is not None and seen.steps is not None:
            slopes = torch.tensor(self.slopes, dtype=torch.float32, device=query.device).view(1, -1, 1, 1)
            bias = (slopes * seen.steps).to(query.dtype)
            bias = bias if seen.mask is None else bias.masked_fill(~seen.mask, -torch.inf)
        if bias is None:
            grouped = self.num_key_value_heads != self.num_heads
            return F.scaled_dot_product_attention(query, seen.keys, seen.values, scale=self.scale, enable_gqa=grouped)
        keys, values = self._repeated(seen.keys), self._repeated(seen.values)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self.scale)

    def _repeated(self, heads: torch.Tensor) -> torch.Tensor:
        return repeated_heads(heads, self.num_heads // self.num_key_value_heads)

    def _explicit(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Attention with dropout of its weights: fused kernels draw masks that depend on the layout."""
        key, value = self._repeated(key), self._repeated(value)
        mask = self._mask(query, key, batch)
        scaled = query / math.sqrt(self.head_dim) if self.scale is None else query * self.scale
        scores = scaled @ key.transpose(-1, -2)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
        name = f"{self.name}.weights"
        weights = attention_dropout(weights, self.dropout, training_place(batch, name), name, self.first_head)
        return weights @ value


def _head_norm(name: str, spec: NormSpec | None, context: TensorContext) -> Norm | None:
    if spec is None:
        return None
    return HeadNorm(name, spec, context) if spec.heads is None else CutNorm(name, spec, context)
