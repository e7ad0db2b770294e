"""LLaMA 1, 2, 3 (arXiv 2302.13971, 2307.09288, 2407.21783), and the many models that are published as LLaMA."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Field
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import Divisible
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes

FAMILY = Family(
    name="LLaMA 1, 2, 3",
    architecture="LlamaForCausalLM",
    model_type="llama",
    entries=(
        *sizes(32000, 4096, 11008, 32, 32),
        Divisible(),
        *rms_norm(1e-6),
        Field("num_key_value_heads", "num_key_value_heads", None),
        Field("head_dim", "head_dim", None),
        Activation("hidden_act", "silu", gated=True),
        Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
        Biases("mlp_bias", ("mlp_bias",)),
        Rope(length=2048),
        ATTENTION_DROPOUT,
    ),
    links=llama_links,
    prefix="model.",
    examples="LLaMA 2 7B, Llama 3.2 1B, SmolLM2, TinyLlama",
)
