"""Qwen 2 and 2.5 (arXiv 2407.10671): LLaMA with biases of queries, keys and values."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Constant, Field
from trainer.families.layer_fields import SwitchedWindow
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes

FAMILY = Family(
    name="Qwen 2, 2.5",
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    entries=(
        *sizes(151936, 4096, 22016, 32, 32),
        *rms_norm(1e-6),
        Constant("qkv_bias", True),
        Field("num_key_value_heads", "num_key_value_heads", 32),
        HeadDim(),
        Activation("hidden_act", "silu", gated=True),
        SwitchedWindow(),
        Rope(length=32768),
        ATTENTION_DROPOUT,
    ),
    links=llama_links,
    prefix="model.",
    examples="Qwen2.5 0.5B, 1.5B, 7B",
)
