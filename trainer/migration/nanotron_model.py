"""The model of a nanotron config, as keys here and as a shape to count."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.migration.draft import Draft, Why
from trainer.migration.model_numbers import head_dim_of, padded
from trainer.migration.shape import Shape, There

_MODEL = "model.model_config."
_OWN = (
    "is_llama_config",
    "is_qwen2_config",
    "interleaved_rotary",
    "rope_interleaved",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "pretraining_tp",
    "use_cache",
    "initializer_range",
    "_attn_implementation",
    "flex_attention_mask",
    "z_loss_coefficient",
    "_fused_rotary_emb",
    "_fused_rms_norm",
    "_use_qkv_packed",
    "_use_doc_masking",
)
_KINDS = ("is_llama_config", "is_qwen2_config")


def at(name: str) -> str:
    """Return the name of a setting of the model, as nanotron nests it."""
    return f"{_MODEL}{name}"


def put_model(draft: Draft, there: There) -> None:
    """Set `model.*` and count the model.

    Raises:
        ConfigError: a size is missing, or something is none.
    """
    hidden, heads = (draft.size(at(name)) for name in ("hidden_size", "num_attention_heads"))
    layers, inner = (draft.size(at(name)) for name in ("num_hidden_layers", "intermediate_size"))
    groups = draft.size(at("num_key_value_heads"), default=heads)
    head_dim = head_dim_of(draft, hidden, heads, at("hidden_size"), at("num_attention_heads"))
    for key, value, name in (
        ("hidden_size", hidden, "hidden_size"),
        ("num_layers", layers, "num_hidden_layers"),
        ("num_attention_heads", heads, "num_attention_heads"),
        ("num_key_value_heads", groups, "num_key_value_heads"),
        ("ffn_hidden_size", inner, "intermediate_size"),
    ):
        draft.put(f"model.{key}", value, at(name))
    draft.drop(at("max_position_embeddings"), Why.no_effect, "rotary positions have no table; model.seq_length counts")
    draft.put("model.position", "rope")
    draft.put("model.rope_theta", draft.number(at("rope_theta"), default=10000.0), at("rope_theta"))
    draft.put("model.norm", "rmsnorm")
    draft.put("model.norm_eps", draft.number(at("rms_norm_eps"), default=1e-6), at("rms_norm_eps"))
    _activation(draft)
    draft.put("model.bias", False)
    qkv_bias = draft.flag(at("attention_bias"))
    if qkv_bias:
        draft.put("model.qkv_bias", True, at("attention_bias"))
    is_tied = draft.flag(at("tie_word_embeddings"))
    draft.put("model.tied_embeddings", is_tied, at("tie_word_embeddings"))
    _rest(draft, there)
    there.shape = Shape(
        hidden,
        layers,
        heads,
        groups,
        head_dim,
        inner,
        True,
        qkv_bias=qkv_bias,
        output_bias=False,
        mlp_bias=False,
        vectors_per_norm=1,
        is_tied=is_tied,
    )


def _activation(draft: Draft) -> None:
    activation = draft.text(at("hidden_act"), default="silu")
    if activation not in ("silu", "swish"):
        here = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "relu": "relu"}.get(
            activation
        )
        if here is None:
            raise ConfigError(f"{draft.origin(at('hidden_act'))} must be silu, gelu or relu, but is {activation}")
        draft.put("model.activation", here, at("hidden_act"))
        draft.put("model.gated", True)
    else:
        draft.put("model.activation", "swiglu", at("hidden_act"))


def _rest(draft: Draft, there: There) -> None:
    window = draft.find(at("sliding_window_size"), at("sliding_window"))
    if window is not None:
        draft.put("model.sliding_window", draft.integer(window.name), window.name)
    _vocabulary(draft, there)
    _structure(draft, there)
    std = draft.find("model.init_method.std")
    draft.put(
        "model.init_std",
        draft.number("model.init_method.std", default=0.025) if std else 0.025,
        "model.init_method.std",
    )
    draft.put(
        "model.recompute",
        "full" if draft.flag("parallelism.recompute_layer") else "none",
        "parallelism.recompute_layer",
    )


def _vocabulary(draft: Draft, there: There) -> None:
    name = f"{_MODEL}vocab_size"
    there.vocab_size = draft.size(name)
    draft.put("model.vocab_size", there.vocab_size, name)
    multiple = draft.size("model.make_vocab_size_divisible_by", default=1)
    draft.put("model.vocab_pad_multiple", multiple, "model.make_vocab_size_divisible_by")
    there.padded_vocab_size = padded(there.vocab_size, multiple * draft.count("layout.tensor_parallel_size"))


def _structure(draft: Draft, there: There) -> None:
    """Note parts of the model that cannot be had here."""
    kinds = [name for name in draft.settings if name.startswith(f"{_MODEL}is_") and name.endswith("_config")]
    others = [name for name in kinds if name.removeprefix(_MODEL) not in _KINDS and draft.flag(name)]
    parts = [name for name in draft.settings if name.startswith(at("moe_config.")) or name == at("moe_config")]
    for name, reason in (
        *((name, "models are those of nanotron's LLaMA and Qwen2") for name in others),
        *((name, "mixtures of experts cannot be trained") for name in parts),
        (at("no_rope_layer"), "it is model.layer_pattern, such as [full,full,full,full_no_rope]"),
    ):
        found = draft.find(name)
        if found is None or found.value is False:
            draft.drop(name, Why.no_effect, "it is off")
            continue
        draft.drop(name, Why.unsupported, reason)
        there.not_counted = there.not_counted or f"{found.written} is not supported"
    scaling = [name for name in draft.settings if name.startswith(at("rope_scaling"))]
    if any(draft.find(name) is not None for name in scaling):
        draft.drop_all(scaling, Why.by_hand, "it is model.rope_scaling.kind with the keys beside it")
    factor = draft.find(at("rope_seq_len_interpolation_factor"))
    if factor is not None:
        draft.put("model.rope_scaling.kind", "linear", factor.name)
        draft.put("model.rope_scaling.factor", draft.number(factor.name), factor.name)
    if draft.flag(at("z_loss_enabled")):
        draft.drop(at("z_loss_enabled"), Why.unsupported, "the loss is plain cross entropy")
    draft.drop_all(map(at, _OWN), Why.no_effect, "how it is computed or stored there; it changes nothing trained here")
    method = "model.init_method.scaling_method"
    is_alike = draft.text(method, default="NUM_LAYERS").upper() == "NUM_LAYERS"
    reason = "outputs into the residual stream begin with model.init_std / sqrt(2 x layers)"
    draft.drop(method, Why.no_effect if is_alike else Why.unsupported, reason)
    draft.drop("model.init_method.use_mup", Why.unsupported, "initial weights are those of model.init_std")
    draft.drop("model.init_method.path", Why.by_hand, "checkpoint.init_from takes a Hugging Face model")
