"""GPT-1 (Radford et al. 2018): norms after the branches, and none before the head."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Constant, Field
from trainer.families.layouts import Link, Transposed
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import SHORT_NAMES, dropouts, layer_norm, short_sizes, summaries

_LAYER = "transformer.h.{layer}"
_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
"""All names that the class knows; its GELU is the approximation."""


def _links(_dims: Dims) -> tuple[Link, ...]:
    turned = Transposed()
    return flat(
        (
            both("embedding", "transformer.tokens_embed"),
            both("position", "transformer.positions_embed"),
            block("attention.qkv", _LAYER, "attn.c_attn", layout=turned),
            block("attention.output", _LAYER, "attn.c_proj", layout=turned),
            block("attention_norm", _LAYER, "ln_1"),
            block("mlp.up", _LAYER, "mlp.c_fc", layout=turned),
            block("mlp.down", _LAYER, "mlp.c_proj", layout=turned),
            block("mlp_norm", _LAYER, "ln_2"),
            both("head", "lm_head"),
        )
    )


FAMILY = Family(
    name="GPT-1",
    architecture="OpenAIGPTLMHeadModel",
    model_type="openai-gpt",
    entries=(
        *short_sizes(40478),
        *layer_norm(),
        Constant("wiring", "post"),
        Constant("final_norm", False),
        Constant("position", "learned"),
        Constant("ffn_hidden_size", None),
        Field("n_positions", "seq_length", 512),
        Activation("afn", "gelu", also=_ACTIVATIONS, is_closed=True),
        *dropouts(0.1, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *summaries(),
    ),
    links=_links,
    prefix="transformer.",
    renamed=SHORT_NAMES,
    ignores=("*.attn.bias",),
    examples="GPT-1 117M",
)
