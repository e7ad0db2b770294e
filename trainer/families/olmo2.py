"""OLMo 2 (arXiv 2501.00656): norms of the branches' outputs, and of all queries and all keys at once."""

from __future__ import annotations

from functools import partial

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Constant, Entry, Field
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import ATTENTION_DROPOUT, rms_norm, sizes

ENTRIES: tuple[Entry, ...] = (
    *sizes(50304, 4096, 11008, 32, 32),
    *rms_norm(1e-5),
    Constant("wiring", "output"),
    Constant("query_key_norm", "full"),
    Field("num_key_value_heads", "num_key_value_heads", None),
    HeadDim(),
    Activation("hidden_act", "silu", gated=True),
    Biases("attention_bias", ("qkv_bias", "attention_output_bias")),
    ATTENTION_DROPOUT,
)
LINKS = partial(
    llama_links, norms={"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"}
)

FAMILY = Family(
    name="OLMo 2",
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    entries=(*ENTRIES, Rope(length=2048)),
    links=LINKS,
    prefix="model.",
    examples="OLMo 2 1B, 7B, 13B",
)
