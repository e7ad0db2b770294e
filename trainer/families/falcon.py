"""Falcon (arXiv 2311.16867): parallel branches, one head of keys and values, or a few."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.errors import ConfigError
from trainer.families.family import Dims, Family
from trainer.families.fields import Activation, Constant, Field, Listed, Refusal, Values
from trainer.families.layouts import Grouped, Link
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import block, both, flat
from trainer.families.usual_keys import dropouts

_LAYER = "transformer.h.{layer}"


def _links(dims: Dims) -> tuple[Link, ...]:
    kv_heads = dims.num_key_value_heads
    by_key = Grouped(kv_heads, (dims.num_heads // kv_heads, 1, 1), dims.head_dim)
    two = dims.wiring == "parallel_two_norms"
    return flat(
        (
            both("embedding", "transformer.word_embeddings"),
            block("attention_norm", _LAYER, "ln_attn" if two else "input_layernorm"),
            block("mlp_norm", _LAYER, "ln_mlp" if two else "post_attention_layernorm"),
            block("attention.qkv", _LAYER, "self_attention.query_key_value", layout=by_key),
            block("attention.output", _LAYER, "self_attention.dense"),
            block("mlp.up", _LAYER, "mlp.dense_h_to_4h"),
            block("mlp.down", _LAYER, "mlp.dense_4h_to_h"),
            both("final_norm", "transformer.ln_f"),
            both("head", "lm_head"),
        )
    )


@dataclass(frozen=True)
class _Generation:
    """The switches that tell Falcon RW, 7B and 40B apart: heads of keys, and norms of the parallel branches."""

    @property
    def defaults(self) -> Values:
        """Their keys."""
        return {
            "new_decoder_architecture": False,
            "multi_query": True,
            "num_kv_heads": None,
            "parallel_attn": True,
            "num_ln_in_parallel_attn": None,
        }

    def read(self, theirs: Values) -> Values:
        """Return heads of keys and wiring."""
        heads, is_new, is_parallel = (
            theirs[key] for key in ("num_attention_heads", "new_decoder_architecture", "parallel_attn")
        )
        kv_heads = (theirs["num_kv_heads"] or heads) if is_new else 1 if theirs["multi_query"] else heads
        if not is_parallel:
            if is_new:
                raise ConfigError("parallel_attn must be true with new_decoder_architecture, but is false")
            return {"num_key_value_heads": kv_heads, "wiring": "pre"}
        norms = theirs["num_ln_in_parallel_attn"] or 2
        return {
            "num_key_value_heads": kv_heads,
            "wiring": "parallel_two_norms" if is_new and norms == 2 else "parallel",
        }

    def write(self, ours: Values) -> Values:
        """Return their keys."""
        heads, kv_heads, wiring = (ours.get(key) for key in ("num_attention_heads", "num_key_value_heads", "wiring"))
        kv_heads = kv_heads or heads
        is_new = wiring == "parallel_two_norms" or (wiring == "parallel" and kv_heads not in (1, heads))
        return {
            "new_decoder_architecture": is_new,
            "multi_query": is_new or kv_heads == 1,
            "num_kv_heads": kv_heads if is_new else heads,
            "parallel_attn": wiring in ("parallel", "parallel_two_norms"),
            "num_ln_in_parallel_attn": (2 if wiring == "parallel_two_norms" else 1) if is_new else None,
        }


FAMILY = Family(
    name="Falcon",
    architecture="FalconForCausalLM",
    model_type="falcon",
    entries=(
        Field("vocab_size", "vocab_size", 65024),
        Field("hidden_size", "hidden_size", 4544),
        Field("ffn_hidden_size", "ffn_hidden_size", None),
        Field("num_hidden_layers", "num_layers", 32),
        Field("num_attention_heads", "num_attention_heads", 71),
        Field("tie_word_embeddings", "tied_embeddings", True),
        Field("initializer_range", "init_std", 0.02),
        Field("layer_norm_epsilon", "norm_eps", 1e-5),
        Constant("norm", "layernorm"),
        Constant("norm_bias", True),
        Field("bias", "bias", False),
        Activation("activation", "gelu"),
        _Generation(),
        HeadDim(is_free=False),
        Refusal("alibi", False, "rounded slopes and scaled positions (Falcon RW)"),
        Refusal("apply_residual_connection_post_layernorm", False, "a residual stream behind the norm"),
        Rope(length=2048),
        Listed("rope_ratio"),
        *dropouts(0.0, "hidden_dropout", "attention_dropout"),
    ),
    links=_links,
    prefix="transformer.",
    renamed={"n_embed": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"},
    examples="Falcon 7B, 40B",
)
