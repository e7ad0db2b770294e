"""GPT-J (Wang and Komatsuzaki 2021): parallel branches behind one norm, rotary pairs side by side."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Constant, Field
from trainer.families.layouts import Link, Rotated, Same, Stacked
from trainer.families.rope_fields import RotaryDim
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import SHORT_NAMES, dropouts, layer_norm, short_sizes

_LAYER = "transformer.h.{layer}"


def _links(dims: Dims) -> tuple[Link, ...]:
    turned = Rotated(dims.head_dim, dims.rope_dims)
    names = (f"attn.{part}_proj" for part in "qkv")
    return flat(
        (
            both("embedding", "transformer.wte"),
            block("attention_norm", _LAYER, "ln_1"),
            block("attention.qkv", _LAYER, *names, layout=Stacked((turned, turned, Same()))),
            block("attention.output", _LAYER, "attn.out_proj"),
            block("mlp.up", _LAYER, "mlp.fc_in"),
            block("mlp.down", _LAYER, "mlp.fc_out"),
            both("final_norm", "transformer.ln_f"),
            both("head", "lm_head"),
        )
    )


FAMILY = Family(
    name="GPT-J",
    architecture="GPTJForCausalLM",
    model_type="gptj",
    entries=(
        *short_sizes(50400, tied=False, hidden=4096, layers=28),
        *layer_norm(),
        Constant("qkv_bias", False),
        Constant("attention_output_bias", False),
        Constant("head_bias", True),
        Constant("wiring", "parallel"),
        Field("n_positions", "seq_length", 2048),
        Field("n_inner", "ffn_hidden_size", None),
        RotaryDim("rotary_dim", 64),
        Activation("activation_function", "gelu_new"),
        *dropouts(0.0, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
    ),
    links=_links,
    prefix="transformer.",
    renamed=SHORT_NAMES,
    ignores=("*.attn.bias", "*.attn.masked_bias", "*.attn.embed_positions"),
    examples="GPT-J 6B",
)
