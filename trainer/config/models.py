"""Derive what the model is, and how it is computed, from the keys of `model.*`. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from trainer.config.lora import adapted
from trainer.config.schema import (
    ActivationKind,
    LayerAttention,
    ModelConfig,
    NormKind,
    PositionKind,
    QueryKeyNorm,
    RopeScaling,
    RopeScalingKind,
)
from trainer.spec.execution import Execution
from trainer.spec.model import Block, Model
from trainer.spec.parts import Activation, Attention, Embedding, FeedForward, Head, Norm, Positions
from trainer.spec.rope import READ_BY, Rope


@dataclass(frozen=True)
class Sizes:
    """Values that the nulls in `model.*` stand for."""

    num_key_value_heads: int
    head_dim: int
    ffn_hidden_size: int


def sizes(model: ModelConfig) -> Sizes:
    """Resolve every null of `model` that is a size, but the vocabulary."""
    return Sizes(
        num_key_value_heads=model.num_key_value_heads or model.num_attention_heads,
        head_dim=model.head_dim or model.hidden_size // model.num_attention_heads,
        ffn_hidden_size=model.ffn_hidden_size or 4 * model.hidden_size,
    )


def resolved(model: ModelConfig) -> ModelConfig:
    """Return the same keys, with every null that stands for another key's value replaced by it."""
    found = sizes(model)
    return replace(model, **{field.name: getattr(found, field.name) for field in fields(found)})


def whole_scaling(model: ModelConfig) -> RopeScaling:
    """Return the scaling of rotary frequencies, with the length that they were made for."""
    scaling = model.rope_scaling
    if "original_length" in READ_BY[scaling.kind] and scaling.original_length is None:
        return replace(scaling, original_length=model.seq_length)
    return scaling


def layer_attention(model: ModelConfig) -> tuple[LayerAttention, ...]:
    """Return the kind of attention of each layer."""
    plain = LayerAttention.full if model.sliding_window is None else LayerAttention.window
    pattern = model.layer_pattern or (plain,)
    return tuple(pattern[index % len(pattern)] for index in range(model.num_layers))


def is_gated(model: ModelConfig) -> bool:
    """Return whether the MLP has a gate."""
    return model.activation is ActivationKind.swiglu if model.gated is None else model.gated


def has_norm_bias(model: ModelConfig) -> bool:
    """Return whether the norms have a bias."""
    return model.norm is NormKind.layernorm and model.norm_weight and _bias(model, model.norm_bias)


def knows_its_length(model: ModelConfig) -> bool:
    """Return whether model.seq_length is a part of the model: it counts learned positions, or scales rotary ones."""
    return make_model(model, 1) != make_model(replace(model, seq_length=model.seq_length + 1), 1)


def make_model(model: ModelConfig, vocab_size: int) -> Model:
    """Return the description of the model; `vocab_size` comes from the config or the tokenizer."""
    hidden = model.hidden_size
    norm = _norm(model, hidden)
    feed_forward = _feed_forward(model)
    blocks = {
        kind: adapted(
            Block(_attention(model, kind), feed_forward, norm, model.wiring, model.residual_scale), model.lora
        )
        for kind in dict.fromkeys(layer_attention(model))
    }
    is_learned = model.position is PositionKind.learned
    return Model(
        embedding=Embedding(vocab_size, hidden, model.embedding_scale, norm if model.embedding_norm else None),
        positions=Positions(hidden, model.seq_length if is_learned else None, model.position_offset),
        blocks=tuple(blocks[kind] for kind in layer_attention(model)),
        final_norm=norm if model.final_norm else None,
        head=Head(
            hidden,
            vocab_size,
            tied=model.tied_embeddings,
            bias=model.head_bias,
            scale=model.logit_scale,
            softcap=model.final_softcap,
        ),
    )


def _bias(model: ModelConfig, own: bool | None) -> bool:
    return model.bias if own is None else own


def _norm(model: ModelConfig, width: int) -> Norm:
    return Norm(model.norm, width, model.norm_eps, model.norm_weight, has_norm_bias(model), model.norm_offset)


def _attention(model: ModelConfig, kind: LayerAttention) -> Attention:
    found = sizes(model)
    one = Attention(
        model.hidden_size,
        model.num_attention_heads,
        found.num_key_value_heads,
        found.head_dim,
        rope=_rope(model, kind),
        window=model.sliding_window if kind.is_windowed else None,
        bias=_bias(model, model.qkv_bias),
        output_bias=_bias(model, model.attention_output_bias),
        scale=model.attention_scale,
        clip=model.clip_qkv,
        alibi=model.position is PositionKind.alibi,
    )
    if model.query_key_norm is QueryKeyNorm.none:
        return one
    norm = replace(_norm(model, found.head_dim), bias=False)
    if model.query_key_norm is QueryKeyNorm.head:
        return replace(one, query_norm=norm, key_norm=norm)
    return replace(
        one,
        query_norm=replace(norm, width=one.queries, heads=one.num_heads),
        key_norm=replace(norm, width=one.keys, heads=one.num_key_value_heads),
    )


def _rope(model: ModelConfig, kind: LayerAttention) -> Rope | None:
    if model.position is not PositionKind.rope or not kind.rotates:
        return None
    base = model.rope_theta
    if kind.is_windowed and model.local_rope_theta is not None:
        base = model.local_rope_theta
    return Rope(base, model.rope_dims or sizes(model).head_dim, _scaling(model, kind))


def _scaling(model: ModelConfig, kind: LayerAttention) -> RopeScaling | None:
    scaling = whole_scaling(model)
    if scaling.kind is RopeScalingKind.none or (kind.is_windowed and not scaling.windowed):
        return None
    # What `windowed` decides has been decided.
    return replace(scaling, windowed=True)


def _feed_forward(model: ModelConfig) -> FeedForward:
    is_swiglu = model.activation is ActivationKind.swiglu
    return FeedForward(
        model.hidden_size,
        sizes(model).ffn_hidden_size,
        Activation.silu if is_swiglu else Activation(model.activation.value),
        gated=is_gated(model),
        bias=_bias(model, model.mlp_bias),
        output_bias=_bias(model, model.mlp_bias),
    )


def make_execution(model: ModelConfig, tensor_parallel_size: int) -> Execution:
    """Return how the model is computed on this many tensor-parallel ranks."""
    return Execution(
        seq_length=model.seq_length,
        vocab_unit=model.vocab_pad_multiple * tensor_parallel_size,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        init_std=model.init_std,
        # Two matrices of a block write into the residual stream: GPT-2 (Radford et al. 2019), section 2.3.
        residual_std=model.init_std / math.sqrt(2 * model.num_layers),
        recompute=model.recompute,
        fused_loss=model.fused_loss,
    )


def changed_keys(there: ModelConfig, here: ModelConfig) -> dict[str, tuple[object, object]]:
    """Return the keys of `model.*` that make two configs describe different models, each with its two values.

    A key counts if its value `there` would make another model of the config `here`.
    """
    saved, mine = resolved(there), resolved(here)
    old, new = flat_keys(saved), flat_keys(mine)
    names = [name for name in new if old[name] != new[name]]
    model = make_model(mine, 1)
    # A key that matters only together with another one is named beside it, or not at all.
    alone = [name for name in names if make_model(_with(mine, name, old[name]), 1) != model]
    if not alone and make_model(saved, 1) != model:
        alone = names
    return {name: (old[name], new[name]) for name in alone}


def flat_keys(model: ModelConfig) -> dict[str, object]:
    """Return the keys below `model`, those of its parts with a dot."""
    found: dict[str, object] = {}
    for field in fields(model):
        value = getattr(model, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{part.name}": getattr(value, part.name) for part in fields(value)}
        else:
            found[field.name] = value
    return found


def _with(model: ModelConfig, name: str, value: object) -> ModelConfig:
    part, _, leaf = name.partition(".")
    changed: dict[str, Any] = {part: replace(getattr(model, part), **{leaf: value}) if leaf else value}
    return replace(model, **changed)
