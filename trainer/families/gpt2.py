"""GPT-2 (Radford et al. 2019). Matrices are kept with inputs as rows."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Constant, Field, Refusal
from trainer.families.layouts import Link, Transposed
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import SHORT_NAMES, dropouts, layer_norm, short_sizes, summaries

_LAYER = "transformer.h.{layer}"


def _links(_dims: Dims) -> tuple[Link, ...]:
    turned = Transposed()
    return flat(
        (
            both("embedding", "transformer.wte"),
            both("position", "transformer.wpe"),
            block("attention_norm", _LAYER, "ln_1"),
            block("attention.qkv", _LAYER, "attn.c_attn", layout=turned),
            block("attention.output", _LAYER, "attn.c_proj", layout=turned),
            block("mlp_norm", _LAYER, "ln_2"),
            block("mlp.up", _LAYER, "mlp.c_fc", layout=turned),
            block("mlp.down", _LAYER, "mlp.c_proj", layout=turned),
            both("final_norm", "transformer.ln_f"),
            both("head", "lm_head"),
        )
    )


FAMILY = Family(
    name="GPT-2",
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    entries=(
        *short_sizes(50257),
        *layer_norm(),
        Constant("position", "learned"),
        Field("n_positions", "seq_length", 1024),
        Field("n_inner", "ffn_hidden_size", None),
        Activation("activation_function", "gelu_new"),
        Refusal("scale_attn_weights", True, "scores that are not scaled"),
        Refusal("scale_attn_by_inverse_layer_idx", False, "scores that are scaled by their layer"),
        Refusal("reorder_and_upcast_attn", False, "another order of the products of attention"),
        Refusal("add_cross_attention", False, "cross attention"),
        *dropouts(0.1, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
        *summaries(),
    ),
    links=_links,
    prefix="transformer.",
    renamed=SHORT_NAMES,
    ignores=("*.attn.bias", "*.attn.masked_bias"),
    examples="GPT-2 124M to 1558M, DistilGPT-2",
)
