"""Tiny models with the options of published families, so that every option of a block is in one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import (
    ActivationKind,
    LayerAttention,
    ModelConfig,
    NormKind,
    PositionKind,
    QueryKeyNorm,
    RopeScaling,
    RopeScalingKind,
    Wiring,
)

_WINDOW, _FULL, _STILL = LayerAttention.window, LayerAttention.full, LayerAttention.full_no_rope
_ROPE = replace(TINY, position=PositionKind.rope, head_dim=8)
_GROUPED = replace(TINY_LLAMA, num_attention_heads=8, num_key_value_heads=2, head_dim=4)
"""Fewer key/value heads than four ranks."""
LONG = RopeScaling(RopeScalingKind.longrope, 3.0, original_length=8, short_factor=(1.0, 1.5), long_factor=(1.5, 4.0))

OPTIONS: dict[str, ModelConfig] = {
    "gemma3": replace(
        _GROUPED,
        num_layers=3,
        wiring=Wiring.sandwich,
        norm_offset=1.0,
        activation=ActivationKind.gelu_tanh,
        gated=True,
        query_key_norm=QueryKeyNorm.head,
        layer_pattern=(_WINDOW, _FULL),
        sliding_window=4,
        local_rope_theta=20.0,
        rope_scaling=RopeScaling(RopeScalingKind.linear, 4.0, windowed=False),
        attention_scale=0.7,
        embedding_scale=4.0,
        final_softcap=3.0,
        tied_embeddings=True,
    ),
    "olmo2": replace(_GROUPED, wiring=Wiring.output, query_key_norm=QueryKeyNorm.full, clip_qkv=1.2),
    "olmo1": replace(TINY_LLAMA, norm=NormKind.layernorm, norm_weight=False, clip_qkv=0.3),
    "gpt_j": replace(
        _ROPE,
        wiring=Wiring.parallel,
        rope_dims=4,
        qkv_bias=False,
        attention_output_bias=False,
        tied_embeddings=False,
        head_bias=True,
    ),
    "neox": replace(_ROPE, wiring=Wiring.parallel_two_norms, rope_dims=2, activation=ActivationKind.gelu),
    "bloom": replace(TINY, position=PositionKind.alibi, embedding_norm=True, num_attention_heads=12, head_dim=4),
    "alibi_window": replace(TINY, position=PositionKind.alibi, sliding_window=5, num_key_value_heads=2),
    "opt": replace(TINY, position_offset=2, activation=ActivationKind.relu, head_bias=True),
    "gpt1": replace(TINY, wiring=Wiring.post, final_norm=False),
    "cohere": replace(
        TINY_LLAMA,
        wiring=Wiring.parallel,
        norm=NormKind.layernorm,
        num_key_value_heads=1,
        logit_scale=0.3,
        final_softcap=2.0,
        tied_embeddings=True,
        norm_bias=False,
    ),
    "granite": replace(
        TINY_LLAMA, residual_scale=0.4, embedding_scale=3.0, attention_scale=0.2, logit_scale=1 / 3, qkv_bias=True
    ),
    "gpt_neo": replace(
        TINY,
        attention_scale=1.0,
        layer_pattern=(_FULL, _WINDOW),
        sliding_window=3,
        qkv_bias=False,
        head_bias=True,
        final_softcap=4.0,
        logit_scale=2.0,
    ),
    "smollm3": replace(
        _GROUPED,
        layer_pattern=(_FULL, _STILL),
        rope_scaling=RopeScaling(RopeScalingKind.llama3, 8.0, original_length=16),
    ),
    "yarn": replace(
        _ROPE,
        rope_scaling=RopeScaling(RopeScalingKind.yarn, 4.0, original_length=64, beta_fast=8.0),
        query_key_norm=QueryKeyNorm.full,
        num_key_value_heads=2,
    ),
    "longrope": replace(_ROPE, rope_dims=4, rope_scaling=LONG),
    "dynamic": replace(_ROPE, rope_scaling=RopeScaling(RopeScalingKind.dynamic, 2.0, original_length=5)),
    "no_positions": replace(
        TINY, position=PositionKind.none, activation=ActivationKind.relu2, query_key_norm=QueryKeyNorm.head, bias=False
    ),
}

OPTION_SETS: dict[str, dict[str, Any]] = {
    "": {},
    "gemma": {
        "wiring": Wiring.sandwich,
        "norm": NormKind.rmsnorm,
        "norm_offset": 1.0,
        "bias": False,
        "gated": True,
        "query_key_norm": QueryKeyNorm.head,
        "position": PositionKind.rope,
        "local_rope_theta": 50.0,
        "layer_pattern": (LayerAttention.window, LayerAttention.full),
        "sliding_window": 3,
        "embedding_scale": 8.0,
        "final_softcap": 2.0,
    },
    "olmo2": {
        "wiring": Wiring.output,
        "norm": NormKind.rmsnorm,
        "bias": False,
        "query_key_norm": QueryKeyNorm.full,
        "num_key_value_heads": 2,
        "position": PositionKind.rope,
        "clip_qkv": 1.5,
    },
    "cohere": {
        "wiring": Wiring.parallel,
        "norm_bias": False,
        "num_key_value_heads": 1,
        "head_bias": True,
        "logit_scale": 0.5,
        "final_softcap": 2.0,
        "residual_scale": 0.8,
        "position_offset": 2,
    },
    "mistral": {
        "norm": NormKind.rmsnorm,
        "bias": False,
        "num_key_value_heads": 8,
        "position": PositionKind.rope,
        "layer_pattern": (LayerAttention.window, LayerAttention.full),
        "sliding_window": 3,
    },
    "bloom": {"position": PositionKind.alibi, "embedding_norm": True, "head_bias": True},
    "neox": {
        "wiring": Wiring.parallel_two_norms,
        "position": PositionKind.rope,
        "rope_dims": 2,
        "rope_scaling": RopeScaling(RopeScalingKind.yarn, 4.0, original_length=64),
        "attention_scale": 0.4,
    },
}
"""Options of the model as keys, by the family that has most of them."""
