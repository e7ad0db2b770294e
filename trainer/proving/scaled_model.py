"""A model scaled down until it trains in a second, with every part of its structure kept. No torch.

Sizes shrink; what layers and layouts branch on stays: whether key/value heads are shared, and shared by ranks; whether
heads are as wide as hidden_size says; whether sizes are odd; windows shorter than a sequence; each kind of attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.models import is_gated, layer_attention, sizes
from trainer.config.schema import LoraConfig, ModelConfig, RopeScaling, RopeScalingKind

HEAD_DIM = 8
MOST_HEADS = 8
"""Largest number of query heads for one key/value head."""
SEQUENCE = 16
VOCABULARY = 61
"""Odd, so that every tensor-parallel size pads it."""
MULTIPLE = 4
"""model.vocab_pad_multiple."""
LONGEST_PATTERN = 6
_LORA_RANK = 2


@dataclass(frozen=True)
class Extent:
    """The demands of layouts on a model."""

    tensor: int = 1
    """Tensor-parallel size that must divide it."""
    stages: int = 1
    """Number of stages, each of which holds a block."""
    shares_heads: bool = False
    """True if several tensor-parallel ranks hold the same key/value head."""
    most_heads: int = MOST_HEADS


def scaled_model(model: ModelConfig, vocab_size: int | None, extent: Extent) -> ModelConfig:
    """Return a small model of the same structure. Without dropout, which the oracle does not have.

    Args:
        model: of a config that `validate` has accepted.
        vocab_size: number of token ids; None if it is not known yet.
        extent: what the layouts ask of it.
    """
    heads, groups = _heads(model, extent)
    found = sizes(model)
    head_dim = HEAD_DIM + found.head_dim % HEAD_DIM
    hidden, own_head_dim = _hidden(model, heads, head_dim)
    ffn = _even_as(found.ffn_hidden_size, hidden * found.ffn_hidden_size / model.hidden_size, extent.tensor)
    sequence = _even_as(model.seq_length, SEQUENCE, extent.tensor if model.seq_length % extent.tensor == 0 else 1)
    pattern = _pattern(model)
    rope_dims = None if model.rope_dims is None else _rope_dims(model.rope_dims, found.head_dim, head_dim)
    changed: dict[str, Any] = {
        "hidden_size": hidden,
        "num_layers": max(2, extent.stages, len(pattern)),
        "num_attention_heads": heads,
        "num_key_value_heads": None if model.num_key_value_heads is None else groups,
        "head_dim": own_head_dim,
        "ffn_hidden_size": None if model.ffn_hidden_size is None else ffn,
        "seq_length": sequence,
        "vocab_size": _vocabulary(model, vocab_size, extent.tensor),
        "vocab_pad_multiple": MULTIPLE,
        "rope_dims": rope_dims,
        "rope_scaling": _scaling(model, (rope_dims or head_dim) // 2, sequence),
        "attention_scale": _follows(model.attention_scale, 1 / math.sqrt(found.head_dim), 1 / math.sqrt(head_dim)),
        "embedding_scale": _follows(model.embedding_scale, math.sqrt(model.hidden_size), math.sqrt(hidden)),
        "sliding_window": _window(model, sequence),
        "layer_pattern": pattern,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        # So that layers put out as much as those of the model itself, but never more than they are given.
        "init_std": min(model.init_std * math.sqrt(model.hidden_size), 1.0) / math.sqrt(hidden),
        "lora": _lora(model.lora),
    }
    return replace(model, **changed)


def _heads(model: ModelConfig, extent: Extent) -> tuple[int, int]:
    """Return query heads and key/value heads: as many for each, up to a limit, and as odd."""
    heads, groups = model.num_attention_heads, sizes(model).num_key_value_heads
    if groups == heads:
        few = _even_as(heads, 4, extent.tensor)
        return few, few
    ratio = heads // groups
    if ratio > extent.most_heads:
        ratio = extent.most_heads - (extent.most_heads + ratio) % 2
    if groups == 1:
        few = 1
    elif extent.shares_heads:
        few = max(one for one in range(1, extent.tensor) if extent.tensor % one == 0)
    else:
        few = _even_as(groups, 2, extent.tensor)
    unit = extent.tensor // math.gcd(extent.tensor, few)
    ratio = -(-ratio // unit) * unit
    return few * ratio, few


def _even_as(number: int, near: float, unit: int) -> int:
    """Return a multiple of `unit` that is at least about `near`, and odd if `number` is, where a multiple can be."""
    least = max(unit, -(-round(near) // unit) * unit)
    return least if least % 2 == number % 2 or unit % 2 == 0 else least + unit


def _hidden(model: ModelConfig, heads: int, head_dim: int) -> tuple[int, int | None]:
    """Return hidden_size, and head_dim where the config gives one."""
    if model.head_dim is None:
        return heads * head_dim, None
    ratio = model.hidden_size / (model.num_attention_heads * model.head_dim)
    if ratio == 1:
        return heads * head_dim, head_dim
    near = max(4, round(heads * head_dim * ratio / 4) * 4)
    return near + 4 * (near == heads * head_dim), head_dim


def _rope_dims(dims: int, head_dim: int, small: int) -> int:
    return small if dims == head_dim else max(2, min(small - small % 2, round(small * dims / head_dim / 2) * 2))


def _vocabulary(model: ModelConfig, vocab_size: int | None, tensor: int) -> int:
    """Return a vocabulary that is padded if the model's is."""
    whole = vocab_size is not None and vocab_size % (model.vocab_pad_multiple * max(1, tensor)) == 0
    return math.lcm(MULTIPLE, MULTIPLE * tensor) * max(1, 64 // (MULTIPLE * tensor)) if whole else VOCABULARY


def _window(model: ModelConfig, sequence: int) -> int | None:
    if model.sliding_window is None:
        return None
    if model.sliding_window >= model.seq_length:
        return sequence
    return max(2, min(sequence - 1, round(sequence * model.sliding_window / model.seq_length)))


def _pattern(model: ModelConfig) -> tuple[Any, ...]:
    """Return the kinds of attention: the whole pattern, or, of a long one, each kind once."""
    if len(model.layer_pattern) <= LONGEST_PATTERN:
        return model.layer_pattern
    return tuple(dict.fromkeys(layer_attention(model)))


def _scaling(model: ModelConfig, frequencies: int, sequence: int) -> RopeScaling:
    scaling = model.rope_scaling
    if scaling.kind is RopeScalingKind.none:
        return scaling
    length = scaling.original_length
    if length is not None:
        length = max(2, round(sequence * length / model.seq_length))
    if scaling.kind is not RopeScalingKind.longrope:
        return replace(scaling, original_length=length)
    short, long = (_spread(one, frequencies) for one in (scaling.short_factor, scaling.long_factor))
    return replace(scaling, original_length=length, short_factor=short, long_factor=long)


def _spread(values: Sequence[float], count: int) -> tuple[float, ...]:
    return tuple(values[index * len(values) // count] for index in range(count))


def _follows(value: Any, usual: float, small: float) -> Any:
    """Return the value; if it is the one that a size of the model gives, the one that the small size gives."""
    return small if value is not None and math.isclose(value, usual, rel_tol=1e-3) else value


def _lora(lora: LoraConfig) -> LoraConfig:
    """Return adapters of a small rank with the scale of the model's."""
    if lora.rank is None or lora.rank <= _LORA_RANK:
        return lora
    shrunk = _LORA_RANK / lora.rank
    alpha = lora.rank if lora.alpha is None else lora.alpha
    return replace(
        lora,
        rank=_LORA_RANK,
        alpha=None
        if lora.alpha is None and not lora.rank_stabilised
        else alpha * (math.sqrt(shrunk) if lora.rank_stabilised else shrunk),
    )


def told_scale(model: ModelConfig, small: ModelConfig) -> str:
    """Return what was scaled, in one line."""
    old, new = sizes(model), sizes(small)
    parts = [
        ("hidden_size", model.hidden_size, small.hidden_size),
        ("layers", model.num_layers, small.num_layers),
        ("heads", model.num_attention_heads, small.num_attention_heads),
        ("key/value heads", old.num_key_value_heads, new.num_key_value_heads),
        ("head_dim", old.head_dim, new.head_dim),
        ("ffn_hidden_size", old.ffn_hidden_size, new.ffn_hidden_size),
        ("seq_length", model.seq_length, small.seq_length),
    ]
    if model.sliding_window is not None:
        parts.append(("window", model.sliding_window, small.sliding_window or 0))
    gated = "gated " if is_gated(model) else ""
    kinds = f"{gated}{model.activation.value}, {model.norm.value}, {model.wiring.value}, {model.position.value}"
    return f"{', '.join(f'{name} {was:,} -> {now}' for name, was, now in parts)}; kept: {kinds}"
