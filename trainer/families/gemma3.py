"""Gemma 3, text (arXiv 2503.19786): norms around both branches, five layers with a window to one without."""

from __future__ import annotations

from functools import partial

from trainer.families.family import Family
from trainer.families.fields import Activation, Constant, Field, Listed, Refusal, ScoreScale
from trainer.families.gemma1 import SHARED
from trainer.families.layer_fields import EveryFull
from trainer.families.rope_fields import RopeByLayer
from trainer.families.size_fields import Divisible
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import sizes

_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_output_norm": "post_feedforward_layernorm",
}


def _root(value: float) -> float:
    return float(value**-0.5)


def _square(value: float) -> float:
    return float(value**-2)


FAMILY = Family(
    name="Gemma 3, text",
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    entries=(
        *sizes(262208, 2304, 9216, 26, 8, tied=True),
        Divisible(),
        *SHARED,
        Constant("wiring", "sandwich"),
        Constant("query_key_norm", "head"),
        Field("num_key_value_heads", "num_key_value_heads", 4),
        Activation("hidden_activation", "gelu_pytorch_tanh", gated=True),
        ScoreScale("query_pre_attn_scalar", 256, _root, _square, is_whole=True),
        Field("final_logit_softcapping", "final_softcap", None),
        Refusal("attn_logit_softcapping", None, "a soft cap of the scores"),
        EveryFull(6, 4096, "sliding_window_pattern"),
        RopeByLayer(1000000.0, 10000.0, "rope_local_base_freq", length=131072),
        Listed("_sliding_window_pattern", 6),
    ),
    links=partial(llama_links, norms=_NORMS),
    prefix="model.",
    examples="Gemma 3 270M, 1B",
)
