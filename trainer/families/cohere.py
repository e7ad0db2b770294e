"""Cohere's Command R: what is nearest to PaLM (arXiv 2204.02311), with parallel branches and scaled logits."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Biases, Constant, Field, Refusal
from trainer.families.layouts import Link, Rotated, Same, Stacked
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import LLAMA_LAYER, block, llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, sizes


def _links(dims: Dims) -> tuple[Link, ...]:
    turned = Rotated(dims.head_dim, dims.rope_dims)
    names = (f"self_attn.{part}_proj" for part in "qkv")
    qkv = block("attention.qkv", LLAMA_LAYER, *names, layout=Stacked((turned, turned, Same())))
    return llama_links(dims, norms={"attention_norm": "input_layernorm"}, others=(qkv,))


FAMILY = Family(
    name="Cohere (PaLM-style)",
    architecture="CohereForCausalLM",
    model_type="cohere",
    entries=(
        *sizes(256000, 8192, 22528, 40, 64, tied=True),
        Constant("norm", "layernorm"),
        Constant("bias", False),
        Constant("wiring", "parallel"),
        Field("layer_norm_eps", "norm_eps", 1e-5),
        Field("num_key_value_heads", "num_key_value_heads", None),
        HeadDim(),
        Field("logit_scale", "logit_scale", 0.0625),
        Activation("hidden_act", "silu", gated=True),
        Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
        Refusal("use_qk_norm", False, "a norm of queries and keys with a weight for each head"),
        Rope(theta=500000.0, length=8192),
        ATTENTION_DROPOUT,
    ),
    links=_links,
    prefix="model.",
    examples="Command R",
)
