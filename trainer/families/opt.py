"""OPT (arXiv 2205.01068): GPT-3's shape with ReLU; its positions begin at row 2 of their table."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Constant, Equal, Field, Listed, Refusal
from trainer.families.layouts import Link
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import dropouts

_LAYER = "model.decoder.layers.{layer}"


def _links(_dims: Dims) -> tuple[Link, ...]:
    return flat(
        (
            both("embedding", "model.decoder.embed_tokens"),
            both("position", "model.decoder.embed_positions"),
            block("attention_norm", _LAYER, "self_attn_layer_norm"),
            block("attention.qkv", _LAYER, *(f"self_attn.{part}_proj" for part in "qkv")),
            block("attention.output", _LAYER, "self_attn.out_proj"),
            block("mlp_norm", _LAYER, "final_layer_norm"),
            block("mlp.up", _LAYER, "fc1"),
            block("mlp.down", _LAYER, "fc2"),
            both("final_norm", "model.decoder.final_layer_norm"),
            both("head", "lm_head"),
        )
    )


FAMILY = Family(
    name="OPT",
    architecture="OPTForCausalLM",
    model_type="opt",
    entries=(
        Field("vocab_size", "vocab_size", 50272),
        Field("hidden_size", "hidden_size", 768),
        Field("num_hidden_layers", "num_layers", 12),
        Field("num_attention_heads", "num_attention_heads", 12),
        Field("ffn_dim", "ffn_hidden_size", 3072),
        Field("max_position_embeddings", "seq_length", 2048),
        Field("tie_word_embeddings", "tied_embeddings", True),
        Field("init_std", "init_std", 0.02),
        Field("enable_bias", "bias", True),
        Constant("norm", "layernorm"),
        Constant("norm_bias", True),
        Constant("norm_eps", 1e-5),
        Constant("position", "learned"),
        Constant("position_offset", 2),
        Activation("activation_function", "relu"),
        Refusal("do_layer_norm_before", True, "norms after the branches with embeddings of another width (OPT 350M)"),
        Equal("word_embed_proj_dim", "hidden_size", "embeddings of another width than the stream"),
        Refusal("_remove_final_layer_norm", False, "OPT without its final norm"),
        Refusal("layer_norm_elementwise_affine", True, "OPT's norms without parameters"),
        Listed("layerdrop", 0.0),
        Listed("activation_dropout", 0.0),
        *dropouts(0.1, "dropout"),
        Listed("attention_dropout", 0.0, "attention_dropout"),
    ),
    links=_links,
    prefix="model.",
    examples="OPT 125M, 1.3B to 66B",
)
