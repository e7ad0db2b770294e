"""OLMo 1 (arXiv 2402.00838): LLaMA with a LayerNorm that has no parameters."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Constant, Field
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, sizes

FAMILY = Family(
    name="OLMo 1",
    architecture="OlmoForCausalLM",
    model_type="olmo",
    entries=(
        *sizes(50304, 4096, 11008, 32, 32),
        Constant("norm", "layernorm"),
        Constant("norm_weight", False),
        Constant("norm_eps", 1e-5),
        Constant("bias", False),
        Field("num_key_value_heads", "num_key_value_heads", None),
        HeadDim(),
        Field("clip_qkv", "clip_qkv", None),
        Activation("hidden_act", "silu", gated=True),
        Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
        Rope(length=2048),
        ATTENTION_DROPOUT,
    ),
    links=llama_links,
    prefix="model.",
    examples="OLMo 1B, 7B",
)
