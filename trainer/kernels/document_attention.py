"""Causal attention inside the documents of a sequence, in the fastest of three ways that give the same.

*slices*, on a CPU: each document by itself, as if it were alone; no S x S anywhere. *mask*: all S keys of a row, with a
mask that is added to the scores, made once for all layers of a stage that are alike. *varlen*, in half precision on
CUDA: the kernel of sequences of several lengths, FlashAttention's (arXiv 2205.14135, 2307.08691).
Shapes: B micro-batch, S tokens, N query heads and M key/value heads on this rank, D head_dim.
"""

from __future__ import annotations

from enum import Enum
from functools import cache, lru_cache
from inspect import signature

import torch
import torch.nn.functional as F

from trainer.micro_batch import Documents

try:
    from torch.nn.attention import varlen
except ImportError:  # PyTorch before 2.10
    varlen = None  # type: ignore[assignment]

CALL_MULTIPLIES = 1 << 19
"""Multiplications of a thread that take as long as what a further slice costs besides its own, rounded up: 34 us, and
1.1e10 a second, forward and backward, in CPU time of one thread."""
LARGEST_HEAD = 256
"""Largest head_dim of FlashAttention."""


class Way(Enum):
    """The ways in which attention keeps documents apart."""

    slices = "slices"
    mask = "mask"
    varlen = "varlen"


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    window: int | None,
    scale: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Return softmax(scale Q K^T + bias) V, `[B, N, S, D]`, over the earlier keys of each token's document.

    Local; no host sync.

    Args:
        query: `[B, N, S, D]`.
        key: `[B, M, S, D]`.
        value: `[B, M, S, D]`.
        documents: the documents of the rows.
        window: number of keys that a token sees at most, its own among them; None: all.
        scale: factor of the scores; None: 1 / sqrt(D).
        bias: `[1, N, S, S]`, a function of the distance alone, and -inf where a key is not seen; None: nothing.
    """
    if bias is None and can_varlen(query.device, query.dtype, query.shape[3]):
        return _by_varlen(query, key, value, documents, window, scale)
    found: torch.Tensor = _by_hand(query, key, value, documents, window, scale, bias)
    return found


def can_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Return whether PyTorch's kernel of sequences of several lengths can be used, without a bias."""
    fits = dtype in (torch.float16, torch.bfloat16) and head_dim % 8 == 0 and head_dim <= LARGEST_HEAD
    return device.type == "cuda" and fits and _varlen_takes_windows() and _has_flash_attention(device)


@cache
def _has_flash_attention(device: torch.device) -> bool:
    """Return whether the device is an NVIDIA GPU from Ampere on: FlashAttention-2 runs on no older one."""
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _varlen_takes_windows() -> bool:
    """Return whether the kernel is there and takes a window and grouped heads: its first version did not."""
    return varlen is not None and {"window_size", "enable_gqa"} <= set(signature(varlen.varlen_attn).parameters)


def way_on_cpu(documents: Documents, num_heads: int, head_dim: int) -> Way:
    """Return the faster way on a CPU, by lengths and threads alone: recomputation takes the same way again."""
    width, call = num_heads * head_dim, CALL_MULTIPLIES * torch.get_num_threads()
    slices = sum(length**2 * width + call for row in documents.lengths for length in row)
    return Way.slices if slices < 2 * documents.numbers.shape[1] * documents.numbers.numel() * width else Way.mask


# Traced, it would make its mask in every layer, and compile again for documents of other lengths.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    window: int | None,
    scale: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    if query.device.type == "cpu" and way_on_cpu(documents, query.shape[1], query.shape[3]) is Way.slices:
        return by_slices(query, key, value, documents, window, scale, bias)
    return by_mask(query, key, value, documents, window, scale, bias)


def by_slices(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    window: int | None,
    scale: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attend document by document. See `attend`."""
    longest = max(max(lengths) for lengths in documents.lengths)
    if bias is not None or (window is not None and window < longest):
        # Once for all of them, and not both ways: autograd would keep heads and copies.
        repeats = query.shape[1] // key.shape[1]
        key, value = repeated_heads(key, repeats), repeated_heads(value, repeats)
    rows = []
    by_row = (torch.split(heads, 1) for heads in (query, key, value))
    for lengths, *row in zip(documents.lengths, *by_row, strict=True):
        cuts = zip(*(torch.split(heads, lengths, dim=2) for heads in row), strict=True)
        parts = [_alone(q, k, v, documents.numbers.shape[1], window, scale, bias) for q, k, v in cuts]
        rows.append(_joined(parts, 2))
    return _joined(rows, 0)


def _alone(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_length: int,
    window: int | None,
    scale: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    length = query.shape[2]
    if bias is None and (window is None or window >= length):
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    # A corner of the row's: what is added depends on distances.
    added = added_mask(row_length, window, query.dtype, query.device) if bias is None else bias
    return _masked(query, key, value, added[..., :length, :length], scale)


def by_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    window: int | None,
    scale: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attend to all keys of a row, where those outside a token's document have a score of -inf. See `attend`."""
    if bias is None:
        return _masked(query, key, value, added_mask_of_documents(documents, window, query.dtype), scale)
    return _masked(query, key, value, bias_of_documents(bias, documents), scale)


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = repeated_heads(key, repeats), repeated_heads(value, repeats)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _by_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    batch, _, length, _ = query.shape
    # [B, M, S, D] -> [B S, M, D]
    query, key, value = (one.transpose(1, 2).flatten(0, 1) for one in (query, key, value))
    # FlashAttention's window is the number of keys before a query's own. The documents behind the last are empty.
    seen = (-1 if window is None else window - 1, 0)
    found = varlen.varlen_attn(
        query,
        key,
        value,
        documents.starts,
        documents.starts,
        length,
        length,
        scale=scale,
        window_size=seen,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, torch.Tensor), "no more is asked for"
    return found.view(batch, length, *found.shape[1:]).transpose(1, 2)


def repeated_heads(heads: torch.Tensor, repeats: int) -> torch.Tensor:
    """Return each of the heads `[B, M, S, D]` so many times, side by side."""
    return heads if repeats == 1 else heads.repeat_interleave(repeats, dim=1)


def _joined(parts: list[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


@lru_cache(maxsize=4)
def causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which key each query may attend to, bool `[S, K]`: the queries are the last S of the K positions."""
    with torch.inference_mode(False), torch.no_grad():
        query = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
        key = torch.arange(num_keys, device=device).unsqueeze(0)
        allowed = key <= query
        return allowed if window is None else allowed & (key > query - window)


def document_mask(documents: Documents, window: int | None) -> torch.Tensor:
    """Return which key each query may attend to, bool `[B, 1, S, S]`: earlier ones of its document."""
    numbers = documents.numbers
    length = numbers.shape[1]
    with torch.inference_mode(False), torch.no_grad():
        same = numbers.unsqueeze(2) == numbers.unsqueeze(1)
        return same.logical_and_(causal_mask(length, length, window, numbers.device)).unsqueeze(1)


@lru_cache(maxsize=2)
def added_mask(length: int, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return `causal_mask` of a whole row as what is added to the scores, `[S, S]`: SDPA would convert bools anew."""
    with torch.inference_mode(False), torch.no_grad():
        return _as_added(causal_mask(length, length, window, device), dtype)


# Of the last micro-batch alone, for two kinds of layers: it is large, and recomputation makes it once more for all.
@lru_cache(maxsize=2)
def added_mask_of_documents(documents: Documents, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Return `document_mask` as what is added to the scores, `[B, 1, S, S]`, once for all layers that are alike."""
    with torch.inference_mode(False), torch.no_grad():
        return _as_added(document_mask(documents, window), dtype)


def _as_added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


# Of the last micro-batch alone: all layers of a pass add it, and it is large.
@lru_cache(maxsize=1)
def bias_of_documents(bias: torch.Tensor, documents: Documents) -> torch.Tensor:
    """Return `bias` `[1, N, S, S]` for each row, `[B, N, S, S]`, with -inf outside a token's document."""
    with torch.inference_mode(False), torch.no_grad():
        return bias.masked_fill(~document_mask(documents, None), -torch.inf)
