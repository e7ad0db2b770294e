"""Qwen 3, dense (arXiv 2505.09388): a norm of each head's queries and keys instead of biases."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Constant, Field
from trainer.families.layer_fields import SwitchedWindow
from trainer.families.rope_fields import Rope
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes

FAMILY = Family(
    name="Qwen 3",
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    entries=(
        *sizes(151936, 4096, 22016, 32, 32),
        *rms_norm(1e-6),
        Constant("query_key_norm", "head"),
        Field("num_key_value_heads", "num_key_value_heads", 32),
        Field("head_dim", "head_dim", 128),
        Activation("hidden_act", "silu", gated=True),
        Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
        SwitchedWindow(),
        Rope(length=32768),
        ATTENTION_DROPOUT,
    ),
    links=llama_links,
    prefix="model.",
    examples="Qwen3 0.6B, 1.7B, 8B",
)
