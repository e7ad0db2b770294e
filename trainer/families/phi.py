"""Phi-1, 1.5 and 2 (arXiv 2306.11644, 2309.05463): parallel branches behind one norm, biases up to the head."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Constant, Field, Refusal
from trainer.families.layouts import Link
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import LLAMA_LAYER, block, both, llama_links
from trainer.families.usual_keys import dropouts, layer_norm, sizes


def _links(dims: Dims) -> tuple[Link, ...]:
    own = (
        block("attention.output", LLAMA_LAYER, "self_attn.dense"),
        block("mlp.up", LLAMA_LAYER, "mlp.fc1"),
        block("mlp.down", LLAMA_LAYER, "mlp.fc2"),
        both("final_norm", "model.final_layernorm"),
    )
    return llama_links(dims, norms={"attention_norm": "input_layernorm"}, others=own)


FAMILY = Family(
    name="Phi-1, 1.5, 2",
    architecture="PhiForCausalLM",
    model_type="phi",
    entries=(
        *sizes(51200, 2048, 8192, 24, 32),
        *layer_norm(),
        Constant("wiring", "parallel"),
        Constant("head_bias", True),
        Field("layer_norm_eps", "norm_eps", 1e-5),
        Field("num_key_value_heads", "num_key_value_heads", None),
        HeadDim(),
        Activation("hidden_act", "gelu_new"),
        Refusal("qk_layernorm", False, "a norm of queries and keys with biases"),
        Rope(partial=0.5, length=2048),
        *dropouts(0.0, "resid_pdrop", "embd_pdrop", "attention_dropout"),
    ),
    links=_links,
    prefix="model.",
    examples="Phi-1, Phi-1.5, Phi-2",
)
