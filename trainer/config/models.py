"""Derive what the model is, and how it is computed, from the keys of `model.*`. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from trainer.config.schema import ActivationKind, ModelConfig, NormKind, PositionKind
from trainer.spec.execution import Execution
from trainer.spec.model import Block, Model
from trainer.spec.parts import Activation, Attention, Embedding, FeedForward, Head, Norm, Positions, Rope


@dataclass(frozen=True)
class Sizes:
    """Values that the nulls in `model.*` stand for."""

    num_key_value_heads: int
    head_dim: int
    ffn_hidden_size: int


def sizes(model: ModelConfig) -> Sizes:
    """Resolve every null of `model` but the vocabulary."""
    return Sizes(
        num_key_value_heads=model.num_key_value_heads or model.num_attention_heads,
        head_dim=model.head_dim or model.hidden_size // model.num_attention_heads,
        ffn_hidden_size=model.ffn_hidden_size or 4 * model.hidden_size,
    )


def resolved(model: ModelConfig) -> ModelConfig:
    """Return the same keys, with every null that stands for another key's value replaced by it."""
    found = sizes(model)
    return replace(model, **{field.name: getattr(found, field.name) for field in fields(found)})


def make_model(model: ModelConfig, vocab_size: int) -> Model:
    """Return the description of the model; `vocab_size` comes from the config or the tokenizer."""
    found, hidden = sizes(model), model.hidden_size
    norm = Norm(model.norm, hidden, model.norm_eps, bias=model.bias and model.norm is NormKind.layernorm)
    is_rope = model.position is PositionKind.rope
    attention = Attention(
        hidden,
        model.num_attention_heads,
        found.num_key_value_heads,
        found.head_dim,
        rope=Rope(model.rope_theta, found.head_dim) if is_rope else None,
        window=model.sliding_window,
        bias=model.bias,
        output_bias=model.bias,
    )
    gated = model.activation is ActivationKind.swiglu
    feed_forward = FeedForward(
        hidden,
        found.ffn_hidden_size,
        Activation.silu if gated else Activation(model.activation.value),
        gated=gated,
        bias=model.bias,
        output_bias=model.bias,
    )
    return Model(
        embedding=Embedding(vocab_size, hidden),
        positions=Positions(hidden, length=None if is_rope else model.seq_length),
        blocks=(Block(attention, feed_forward, norm),) * model.num_layers,
        final_norm=norm,
        head=Head(hidden, vocab_size, tied=model.tied_embeddings),
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
    names = [field.name for field in fields(ModelConfig) if getattr(saved, field.name) != getattr(mine, field.name)]
    model = make_model(mine, 1)
    # A key that matters only together with another one is named beside it, or not at all.
    alone = [name for name in names if make_model(replace(mine, **{name: getattr(saved, name)}), 1) != model]
    if not alone and make_model(saved, 1) != model:
        alone = names
    return {name: (getattr(saved, name), getattr(mine, name)) for name in alone}
