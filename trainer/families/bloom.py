"""BLOOM (arXiv 2211.05100): positions by ALiBi, and a norm behind the embedding."""

from __future__ import annotations

from trainer.families.family import Dims, Family
from trainer.families.fields import Constant, Field, Listed, Refusal
from trainer.families.layouts import Grouped, Link
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import dropouts, layer_norm

_LAYER = "transformer.h.{layer}"


def _links(dims: Dims) -> tuple[Link, ...]:
    by_head = Grouped(dims.num_heads, (1, 1, 1), dims.head_dim)
    return flat(
        (
            both("embedding", "transformer.word_embeddings"),
            both("embedding.norm", "transformer.word_embeddings_layernorm"),
            block("attention_norm", _LAYER, "input_layernorm"),
            block("attention.qkv", _LAYER, "self_attention.query_key_value", layout=by_head),
            block("attention.output", _LAYER, "self_attention.dense"),
            block("mlp_norm", _LAYER, "post_attention_layernorm"),
            block("mlp.up", _LAYER, "mlp.dense_h_to_4h"),
            block("mlp.down", _LAYER, "mlp.dense_4h_to_h"),
            both("final_norm", "transformer.ln_f"),
            both("head", "lm_head"),
        )
    )


FAMILY = Family(
    name="BLOOM",
    architecture="BloomForCausalLM",
    model_type="bloom",
    entries=(
        Field("vocab_size", "vocab_size", 250880),
        Field("hidden_size", "hidden_size", 64),
        Field("n_layer", "num_layers", 2),
        Field("n_head", "num_attention_heads", 8),
        Field("tie_word_embeddings", "tied_embeddings", True),
        Field("initializer_range", "init_std", 0.02),
        Field("layer_norm_epsilon", "norm_eps", 1e-5),
        Field("seq_length", "seq_length", 2048),
        *layer_norm(),
        Constant("position", "alibi"),
        Constant("embedding_norm", True),
        Constant("activation", "gelu_tanh"),
        Constant("ffn_hidden_size", None),
        Refusal("apply_residual_connection_post_layernorm", False, "a residual stream behind the norm"),
        *map(Listed, ("slow_but_exact", "n_inner", "offset_alibi", "attention_softmax_in_fp32")),
        *map(Listed, ("bias_dropout_fusion", "masked_softmax_fusion", "skip_bias_add", "skip_bias_add_qkv")),
        *dropouts(0.0, "hidden_dropout", "attention_dropout"),
    ),
    links=_links,
    prefix="transformer.",
    renamed={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    examples="BLOOM 560M to 176B",
)
