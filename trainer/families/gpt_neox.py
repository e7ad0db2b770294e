"""GPT-NeoX (arXiv 2204.06745) and Pythia (arXiv 2304.01373): parallel branches, a quarter of each head is rotated."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Biases, Field
from trainer.families.layouts import Grouped, Link
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import Divisible, HeadDim
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import dropouts, layer_norm, sizes

_LAYER = "gpt_neox.layers.{layer}"


def _links(dims: Dims) -> tuple[Link, ...]:
    by_head = Grouped(dims.num_heads, (1, 1, 1), dims.head_dim)
    return flat(
        (
            both("embedding", "gpt_neox.embed_in"),
            block("attention_norm", _LAYER, "input_layernorm"),
            block("attention.qkv", _LAYER, "attention.query_key_value", layout=by_head),
            block("attention.output", _LAYER, "attention.dense"),
            block("mlp_norm", _LAYER, "post_attention_layernorm"),
            block("mlp.up", _LAYER, "mlp.dense_h_to_4h"),
            block("mlp.down", _LAYER, "mlp.dense_4h_to_h"),
            both("final_norm", "gpt_neox.final_layer_norm"),
            both("head", "embed_out"),
        )
    )


FAMILY = Family(
    name="GPT-NeoX, Pythia",
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    entries=(
        *sizes(50432, 6144, 24576, 44, 64),
        Divisible(),
        *layer_norm(),
        Field("layer_norm_eps", "norm_eps", 1e-5),
        HeadDim(is_free=False),
        Field("use_parallel_residual", "wiring", True, {True: "parallel_two_norms", False: "pre"}),
        Activation("hidden_act", "gelu"),
        Biases("attention_bias", ("qkv_bias", "attention_output_bias"), default=True, base=True),
        Rope(theta_key="rotary_emb_base", partial=0.25, partial_key="rotary_pct"),
        *dropouts(0.0, "hidden_dropout", "attention_dropout"),
    ),
    links=_links,
    prefix="gpt_neox.",
    tensors_renamed={"lm_head.weight": "embed_out.weight"},
    ignores=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    examples="Pythia 14M to 12B, GPT-NeoX 20B",
)
