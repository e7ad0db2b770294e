"""SmolLM 3: LLaMA without rotary positions in every fourth layer."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Field
from trainer.families.layer_fields import NoRope
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes

FAMILY = Family(
    name="SmolLM 3",
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    entries=(
        *sizes(128256, 2048, 11008, 36, 16, tied=True),
        *rms_norm(1e-6),
        Field("num_key_value_heads", "num_key_value_heads", 4),
        HeadDim(),
        Activation("hidden_act", "silu", gated=True),
        Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
        Biases("mlp_bias", ("mlp_bias",)),
        NoRope(),
        Rope(theta=2000000.0, length=32768),
        ATTENTION_DROPOUT,
    ),
    links=llama_links,
    prefix="model.",
    examples="SmolLM3 3B",
)
