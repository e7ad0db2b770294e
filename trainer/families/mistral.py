"""Mistral (arXiv 2310.06825): LLaMA with a window over the latest tokens."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Field
from trainer.families.layer_fields import Window
from trainer.families.rope_fields import Rope
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes

FAMILY = Family(
    name="Mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    entries=(
        *sizes(32000, 4096, 14336, 32, 32),
        *rms_norm(1e-6),
        Field("num_key_value_heads", "num_key_value_heads", 8),
        Field("head_dim", "head_dim", None),
        Activation("hidden_act", "silu", gated=True),
        Window(4096),
        Rope(length=131072),
        ATTENTION_DROPOUT,
    ),
    links=llama_links,
    prefix="model.",
    examples="Mistral 7B, Mistral Nemo",
)
