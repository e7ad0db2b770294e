"""GPT-Neo (Black et al. 2021): GPT-2 whose scores are not scaled, with a window in every second layer."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Constant, Field
from trainer.families.layer_fields import AttentionTypes
from trainer.families.layouts import Link
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import dropouts, layer_norm

_LAYER = "transformer.h.{layer}"


def _links(_dims: Dims) -> tuple[Link, ...]:
    return flat(
        (
            both("embedding", "transformer.wte"),
            both("position", "transformer.wpe"),
            block("attention_norm", _LAYER, "ln_1"),
            block("attention.qkv", _LAYER, *(f"attn.attention.{part}_proj" for part in "qkv")),
            block("attention.output", _LAYER, "attn.attention.out_proj"),
            block("mlp_norm", _LAYER, "ln_2"),
            block("mlp.up", _LAYER, "mlp.c_fc"),
            block("mlp.down", _LAYER, "mlp.c_proj"),
            both("final_norm", "transformer.ln_f"),
            both("head", "lm_head"),
        )
    )


FAMILY = Family(
    name="GPT-Neo",
    architecture="GPTNeoForCausalLM",
    model_type="gpt_neo",
    entries=(
        Field("vocab_size", "vocab_size", 50257),
        Field("hidden_size", "hidden_size", 2048),
        Field("num_layers", "num_layers", 24),
        Field("num_heads", "num_attention_heads", 16),
        Field("intermediate_size", "ffn_hidden_size", None),
        Field("max_position_embeddings", "seq_length", 2048),
        Field("tie_word_embeddings", "tied_embeddings", True),
        Field("initializer_range", "init_std", 0.02),
        Field("layer_norm_epsilon", "norm_eps", 1e-5),
        *layer_norm(),
        Constant("position", "learned"),
        Constant("qkv_bias", False),
        Constant("attention_scale", 1.0),
        Activation("activation_function", "gelu_new"),
        AttentionTypes(),
        *dropouts(0.0, "resid_dropout", "embed_dropout", "attention_dropout"),
    ),
    links=_links,
    prefix="transformer.",
    renamed={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    ignores=("*.attn.attention.bias", "*.attn.attention.masked_bias"),
    examples="GPT-Neo 125M, 1.3B, 2.7B",
)
