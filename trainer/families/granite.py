"""Granite 3, dense: LLaMA with factors of embeddings, branches, scores and logits."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Field, Scaled, ScoreScale
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes


def _inverse(value: float) -> float:
    return 1.0 / value


FAMILY = Family(
    name="Granite",
    architecture="GraniteForCausalLM",
    model_type="granite",
    entries=(
        *sizes(32000, 4096, 11008, 32, 32),
        *rms_norm(1e-6),
        Field("num_key_value_heads", "num_key_value_heads", None),
        HeadDim(),
        Field("embedding_multiplier", "embedding_scale", 1.0),
        Field("residual_multiplier", "residual_scale", 1.0),
        ScoreScale("attention_multiplier", 1.0),
        Scaled("logits_scaling", "logit_scale", 1.0, _inverse, _inverse),
        Activation("hidden_act", "silu", gated=True),
        Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
        Biases("mlp_bias", ("mlp_bias",)),
        Rope(length=2048),
        ATTENTION_DROPOUT,
    ),
    links=llama_links,
    prefix="model.",
    examples="Granite 3.1 2B, 8B",
)
