"""Gemma 1 (arXiv 2403.08295): norms that scale by 1 + weight, a gated GELU, and scaled embeddings."""

from __future__ import annotations

import math

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Constant, Derived, Entry, Field, Listed, Refusal
from trainer.families.rope_fields import Rope
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes

SHARED: tuple[Entry, ...] = (
    *rms_norm(1e-6),
    Constant("norm_offset", 1.0),
    Derived("embedding_scale", "hidden_size", math.sqrt),
    Field("head_dim", "head_dim", 256),
    Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
    Refusal("use_bidirectional_attention", False, "attention to later tokens", also=(None,)),
    ATTENTION_DROPOUT,
)
"""Entries that Gemma 3 has too."""

FAMILY = Family(
    name="Gemma 1",
    architecture="GemmaForCausalLM",
    model_type="gemma",
    entries=(
        *sizes(256000, 3072, 24576, 28, 16, tied=True),
        *SHARED,
        Field("num_key_value_heads", "num_key_value_heads", 16),
        # The published files say gelu and mean the approximation.
        Activation("hidden_act", "gelu_pytorch_tanh", gated=True, also={"gelu": "gelu_tanh"}),
        Listed("hidden_activation"),
        Rope(length=8192),
    ),
    links=llama_links,
    prefix="model.",
    examples="Gemma 2B, 7B",
)
