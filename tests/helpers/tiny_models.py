"""Configs of two tiny models."""

from __future__ import annotations

from dataclasses import replace

from trainer.config.schema import ActivationKind, ModelConfig, NormKind, PositionKind

TINY = ModelConfig(hidden_size=16, num_layers=2, num_attention_heads=4, seq_length=12, vocab_pad_multiple=8)
"""GPT-2-like."""
TINY_LLAMA = replace(
    TINY,
    num_key_value_heads=4,
    ffn_hidden_size=24,
    position=PositionKind.rope,
    norm=NormKind.rmsnorm,
    activation=ActivationKind.swiglu,
    bias=False,
    tied_embeddings=False,
)
