"""Phi-3 and Phi-4 (arXiv 2404.14219): LLaMA whose fused matrices lie as ours do."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Field
from trainer.families.layer_fields import Window
from trainer.families.layouts import Link
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import LLAMA_LAYER, block, llama_links
from trainer.families.usual_keys import dropouts, rms_norm, sizes


def _links(dims: Dims) -> tuple[Link, ...]:
    fused = (
        block("attention.qkv", LLAMA_LAYER, "self_attn.qkv_proj"),
        block("mlp.gate_up", LLAMA_LAYER, "mlp.gate_up_proj"),
    )
    return llama_links(dims, others=fused)


FAMILY = Family(
    name="Phi-3, Phi-4",
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    entries=(
        *sizes(32064, 3072, 8192, 32, 32),
        *rms_norm(1e-5),
        Field("num_key_value_heads", "num_key_value_heads", None),
        HeadDim(),
        Activation("hidden_act", "silu", gated=True),
        Window(),
        Rope(partial=1.0, length=4096, original=4096),
        *dropouts(0.0, "resid_pdrop", "embd_pdrop", "attention_dropout"),
    ),
    links=_links,
    prefix="model.",
    examples="Phi-3 mini, Phi-4, Phi-4 mini",
)
