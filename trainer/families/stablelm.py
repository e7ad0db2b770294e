"""StableLM 2 and 3B-4E1T (arXiv 2402.17834): LLaMA with LayerNorm, a quarter of each head is rotated."""

from __future__ import annotations

from trainer.families.family import Family
from trainer.families.fields import Activation, Biases, Constant, Field, Refusal
from trainer.families.rope_fields import Rope
from trainer.families.size_fields import HeadDim
from trainer.families.tensor_names import llama_links
from trainer.families.usual_keys import dropouts, sizes

FAMILY = Family(
    name="StableLM",
    architecture="StableLmForCausalLM",
    model_type="stablelm",
    entries=(
        *sizes(50304, 2560, 6912, 32, 32),
        Constant("norm", "layernorm"),
        Constant("norm_bias", True),
        Constant("bias", False),
        Field("layer_norm_eps", "norm_eps", 1e-5),
        Field("num_key_value_heads", "num_key_value_heads", 32),
        HeadDim(is_free=False),
        Field("use_parallel_residual", "wiring", False, {False: "pre", True: "parallel"}),
        Activation("hidden_act", "silu", gated=True),
        Biases("use_qkv_bias", ("qkv_bias",)),
        Refusal("qk_layernorm", False, "a norm of queries and keys with a weight for each head"),
        Rope(partial=0.25, length=4096),
        *dropouts(0.0, "hidden_dropout", "attention_dropout"),
    ),
    links=llama_links,
    prefix="model.",
    examples="StableLM 3B-4E1T, StableLM 2 1.6B",
)
