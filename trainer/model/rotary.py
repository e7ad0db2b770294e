"""Rotary embedding of queries and keys: the frequencies with their scaling, and the rotation.

Source: arXiv 2104.09864 in the half-rotation layout of LLaMA's Hugging Face weights. The scalings are those of
Hugging Face's transformers, which the weights that use them were trained with: linear arXiv 2306.15595, YaRN arXiv
2309.00071, LongRoPE arXiv 2402.13753, Llama 3.1 arXiv 2407.21783; dynamic is NTK-aware scaling of the base.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from trainer.spec.rope import Rope, RopeScaling, RopeScalingKind


def inverse_frequencies(rope: Rope, length: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the angle by which a position turns each pair of elements, `[dims/2]` fp32.

    Args:
        rope: the rotation.
        length: number of tokens in the text so far; only dynamic and longrope look at it.
        device: device of the result.
    """
    scaling, base = rope.scaling, rope.theta
    kind = RopeScalingKind.none if scaling is None else scaling.kind
    if scaling is not None and kind is RopeScalingKind.dynamic:
        original = _original(scaling)
        growth = scaling.factor * max(length, original) / original - (scaling.factor - 1)
        base = base * growth ** (rope.dims / (rope.dims - 2))
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float32, device=device) / rope.dims
    powers = base**exponents
    if scaling is None or kind in (RopeScalingKind.none, RopeScalingKind.dynamic):
        return 1.0 / powers
    if kind is RopeScalingKind.linear:
        return 1.0 / powers / scaling.factor
    if kind is RopeScalingKind.longrope:
        divisors = scaling.long_factor if length > _original(scaling) else scaling.short_factor
        return 1.0 / (torch.tensor(divisors, dtype=torch.float32, device=device) * powers)
    return _yarn(rope, scaling, powers) if kind is RopeScalingKind.yarn else _llama3(scaling, 1.0 / powers)


def _original(scaling: RopeScaling) -> int:
    assert scaling.original_length is not None, "the model says what length it was trained with"
    return scaling.original_length


def _llama3(scaling: RopeScaling, frequencies: torch.Tensor) -> torch.Tensor:
    """Divide long wavelengths by the factor, leave short ones, and go over smoothly between them."""
    wavelengths, original = 2 * math.pi / frequencies, _original(scaling)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((original / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(rope: Rope, scaling: RopeScaling, powers: torch.Tensor) -> torch.Tensor:
    """Divide the frequencies that turn seldom in the original length by the factor, on a ramp over their indices."""

    def index(rotations: float) -> float:
        turns = _original(scaling) / (rotations * 2 * math.pi)
        return rope.dims * math.log(turns) / (2 * math.log(rope.theta))

    first, last = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dims - 1)
    # The ramp must not have width 0.
    last = last + 0.001 if first == last else last
    indices = torch.arange(rope.dims // 2, dtype=torch.float32, device=powers.device)
    kept = 1 - ((indices - first) / (last - first)).clamp(0.0, 1.0)
    return 1.0 / (scaling.factor * powers) * (1 - kept) + 1.0 / powers * kept


def attention_factor(scaling: RopeScaling | None) -> float:
    """Return the factor of the rotated queries and keys, which YaRN and LongRoPE derive from the length's growth."""
    if scaling is None or scaling.kind not in (RopeScalingKind.yarn, RopeScalingKind.longrope):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    grown = math.log(scaling.factor)
    if scaling.kind is RopeScalingKind.longrope:
        return math.sqrt(1 + grown / math.log(_original(scaling)))
    if scaling.mscale is None or scaling.mscale_all_dim is None:
        return 0.1 * grown + 1.0
    return (0.1 * scaling.mscale * grown + 1.0) / (0.1 * scaling.mscale_all_dim * grown + 1.0)


def _rotary_table(positions: torch.Tensor, rope: Rope, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosine and sine of each angle, `[S, 1 or B, 1, dims/2]` fp32, once for all layers that are alike.

    Rows that are alike share positions over all micro-batches; where each has its own, old tables serve nobody.
    """
    made = _table_for_all if positions.shape[0] == 1 else _table_of_rows
    return made(positions, rope, lengths)


def _made_table(positions: torch.Tensor, rope: Rope, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    # Not a buffer: `module.half()` would cast it and blur late positions. Not an inference tensor: autograd saves it.
    with torch.inference_mode(False), torch.no_grad():
        frequencies = torch.stack([inverse_frequencies(rope, length, positions.device) for length in lengths])
        angles = positions.t().to(torch.float32)[..., None, None] * frequencies.unsqueeze(1)
        factor = attention_factor(rope.scaling)
        return angles.cos().mul_(factor), angles.sin().mul_(factor)


_table_for_all, _table_of_rows = (lru_cache(maxsize=kept)(_made_table) for kept in (16, 2))


def rotate(heads: torch.Tensor, rope: Rope, positions: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Apply the rotary embedding to heads `[S, B, N, D]` at positions `[1 or B, S]`; computed in fp32.

    Only the first `rope.dims` elements of a head are rotated.

    Args:
        heads: queries or keys.
        rope: the rotation.
        positions: position of each token.
        lengths: number of tokens in each text so far, those in a cache included; one number if all are alike.
    """
    head_dim = heads.shape[-1]
    is_by_length = rope.scaling is not None and rope.scaling.depends_on_length
    told = (0,) if not is_by_length else lengths if len(set(lengths)) > 1 else lengths[:1]
    cos, sin = _rotary_table(positions, rope, told)
    half = rope.dims // 2
    low, high, rest = torch.split(heads, [half, half, head_dim - rope.dims], dim=-1)
    # The tables are fp32, so the products are too.
    turned = (low * cos - high * sin, high * cos + low * sin)
    if rope.dims == head_dim:
        return torch.cat(turned, dim=-1).to(heads.dtype)
    return torch.cat((*(part.to(heads.dtype) for part in turned), rest), dim=-1)
