"""The model of Megatron's arguments, as keys here and as a shape to count."""

from __future__ import annotations

from trainer.errors import ConfigError
from trainer.migration.draft import Draft, Why
from trainer.migration.model_numbers import head_dim_of, put_dims_of_rope
from trainer.migration.shape import Shape, There

_POSITIONS = {
    "learned_absolute": "learned",
    "learned": "learned",
    "absolute": "learned",
    "rope": "rope",
    "rotary": "rope",
    "alibi": "alibi",
    "none": "none",
}
_NORMS = {"layernorm": "layernorm", "rmsnorm": "rmsnorm"}
_ROTARY = ("use_rotary_position_embeddings", "position_embedding_type")
_INIT_ALIKE = ("init_method_xavier_uniform",)


def put_model(draft: Draft, there: There) -> None:
    """Set `model.*` and count the model.

    Raises:
        ConfigError: a size is missing or is none.
    """
    sizes = {key: draft.size(key) for key in ("hidden_size", "num_layers", "num_attention_heads")}
    hidden, layers, heads = sizes.values()
    length = draft.size("seq_length", "encoder_seq_length")
    for key, value in sizes.items():
        draft.put(f"model.{key}", value, key)
    draft.put("model.seq_length", length, "seq_length", "encoder_seq_length")
    if draft.find("kv_channels") is not None:
        head_dim = draft.size("kv_channels")
        draft.put("model.head_dim", head_dim, "kv_channels")
    else:
        head_dim = head_dim_of(draft, hidden, heads, "hidden_size", "num_attention_heads")
    groups = _groups(draft, heads)
    rows = _positions(draft, there, head_dim, hidden, length)
    has_bias = not draft.flag("disable_bias_linear") and draft.flag("add_bias_linear", default=True)
    draft.put("model.bias", has_bias, "disable_bias_linear", "add_bias_linear")
    qkv_bias = has_bias or draft.flag("add_qkv_bias")
    if qkv_bias is not has_bias:
        draft.put("model.qkv_bias", qkv_bias, "add_qkv_bias")
    vectors = _norm(draft, has_bias)
    inner, is_gated = _mlp(draft, there, hidden, has_bias)
    is_tied = not draft.flag("untie_embeddings_and_output_weights")
    draft.put("model.tied_embeddings", is_tied, "untie_embeddings_and_output_weights")
    has_embedding_norm = draft.flag("embed_layernorm", "embed_layer_norm")
    if has_embedding_norm:
        draft.put("model.embedding_norm", True, "embed_layernorm", "embed_layer_norm")
    query_key = _query_key_norm(draft, there, head_dim)
    _rest(draft, there)
    there.shape = Shape(
        hidden,
        layers,
        heads,
        groups,
        head_dim,
        inner,
        is_gated,
        qkv_bias=qkv_bias,
        output_bias=has_bias,
        mlp_bias=has_bias,
        vectors_per_norm=vectors,
        query_key_norms=query_key,
        position_rows=rows,
        is_tied=is_tied,
        has_embedding_norm=has_embedding_norm,
    )


def _groups(draft: Draft, heads: int) -> int:
    if draft.find("num_key_value_heads") is not None:
        groups = draft.size("num_key_value_heads")
        draft.put("model.num_key_value_heads", groups, "num_key_value_heads")
        return groups
    if draft.flag("group_query_attention"):
        groups = draft.size("num_query_groups", default=1)
        draft.put("model.num_key_value_heads", groups, "num_query_groups", "group_query_attention")
        return groups
    draft.drop("num_query_groups", Why.no_effect, "it needs --group-query-attention")
    return heads


def _positions(draft: Draft, there: There, head_dim: int, hidden: int, length: int) -> int:
    """Set the positions and return the rows of the table that the model there has."""
    rotates = draft.flag(_ROTARY[0])
    setting = draft.find(_ROTARY[1])
    said = "rope" if rotates else str(setting.value) if setting else "learned_absolute"
    here = _POSITIONS.get(said)
    if here is None:
        draft.put("model.position", "none", *_ROTARY, note=f"there it is {said}, which is not available")
        _structural(draft, there, _ROTARY[1], "positions are learned, rope, alibi and none")
        return 0
    draft.find("no_position_embedding")
    if draft.flag("no_position_embedding") and here == "learned":
        here = "none"
    draft.put("model.position", here, *_ROTARY, "no_position_embedding")
    rows = draft.integer("max_position_embeddings", default=length)
    if here == "rope":
        share = draft.number("rotary_percent", default=1.0)
        put_dims_of_rope(draft, head_dim, share, "rotary_percent")
        names = ("rotary_base", "rope_theta")
        draft.put("model.rope_theta", draft.number(*names, default=10000.0), *names)
        _rope_scaling(draft)
    if here != "learned":
        draft.drop("max_position_embeddings", Why.no_effect, "such positions have no table")
        return 0
    if rows > length:
        there.more_parameters += (rows - length) * hidden
        there.because.append(f"{rows - length:,} rows of its table of positions are behind the end of a sequence")
    return rows


def _rope_scaling(draft: Draft) -> None:
    factor = draft.find("rotary_seq_len_interpolation_factor")
    if factor is not None and draft.number(factor.name) != 1:
        draft.put("model.rope_scaling.kind", "linear", factor.name)
        draft.put("model.rope_scaling.factor", draft.number(factor.name), factor.name)
    if draft.flag("use_rope_scaling"):
        # LLaMA 3.1's, the only kind there; these numbers are its fixed ones.
        draft.put("model.rope_scaling.kind", "llama3", "use_rope_scaling")
        draft.put("model.rope_scaling.factor", draft.number("rope_scaling_factor", default=8.0), "rope_scaling_factor")
        draft.put("model.rope_scaling.low_frequency_factor", 1.0, origin="fixed there")
        draft.put("model.rope_scaling.high_frequency_factor", 4.0, origin="fixed there")
        draft.put("model.rope_scaling.original_length", 8192, origin="fixed there")


def _norm(draft: Draft, has_bias: bool) -> int:
    """Set the norms and return the vectors that each has there."""
    said = draft.text("normalization", default="LayerNorm").lower()
    if said not in _NORMS:
        raise ConfigError(f"{draft.origin('normalization')} must be LayerNorm or RMSNorm, but is {said}")
    draft.put("model.norm", said, "normalization")
    names = ("norm_epsilon", "layernorm_epsilon")
    draft.put("model.norm_eps", draft.number(*names, default=1e-5), *names)
    if draft.flag("apply_layernorm_1p", "layernorm_zero_centered_gamma"):
        draft.put("model.norm_offset", 1.0, "apply_layernorm_1p", "layernorm_zero_centered_gamma")
    if said == "rmsnorm":
        return 1
    if not has_bias:
        draft.put("model.norm_bias", True, origin="a LayerNorm keeps its bias there")
    return 2


def _mlp(draft: Draft, there: There, hidden: int, has_bias: bool) -> tuple[int, bool]:
    """Set the MLP and return its inner width and whether it has a gate."""
    is_fused = has_bias and not draft.flag("no_bias_gelu_fusion")
    names = ("swiglu", "squared_relu", "quick_geglu", "openai_gelu", "onnx_safe", "geglu", "relu")
    chosen = next((name for name in names if draft.flag(name)), "")
    here = {
        "swiglu": "swiglu",
        "squared_relu": "relu2",
        "openai_gelu": "gelu_tanh",
        "onnx_safe": "gelu",
        "relu": "relu",
    }
    is_gated = chosen in ("swiglu", "quick_geglu", "geglu")
    if chosen == "quick_geglu":
        draft.put("model.activation", "gelu_tanh", chosen, note="there it is a faster approximation")
        _structural(draft, there, chosen, "gates are exact GELU, its approximation by tanh, ReLU and SiLU")
        draft.put("model.gated", True, chosen)
    elif chosen == "geglu":
        draft.put("model.activation", "gelu", chosen)
        draft.put("model.gated", True, chosen)
    elif chosen:
        draft.put("model.activation", here[chosen], chosen)
    elif is_fused:
        draft.put("model.activation", "gelu_tanh", origin="default there: its fused kernel approximates by tanh")
    else:
        draft.put("model.activation", "gelu", "no_bias_gelu_fusion")
    width = draft.find("ffn_hidden_size")
    if width is not None:
        inner = draft.size("ffn_hidden_size")
    elif chosen == "swiglu":
        inner = int((4 * hidden * 2 / 3) / 64) * 64
    else:
        inner = 4 * hidden
    if width is not None or inner != 4 * hidden:
        draft.put("model.ffn_hidden_size", inner, "ffn_hidden_size")
    return inner, is_gated


def _query_key_norm(draft: Draft, there: There, head_dim: int) -> int:
    """Set the norms of queries and keys and return their elements in a layer."""
    if not draft.flag("qk_layernorm"):
        return 0
    if draft.value("model.norm") == "rmsnorm":
        draft.put("model.query_key_norm", "head", "qk_layernorm")
        return 2 * head_dim
    _structural(
        draft, there, "qk_layernorm", "norms of queries and keys have no bias here; with RMSNorm they are alike"
    )
    return 0


def _rest(draft: Draft, there: There) -> None:
    draft.put("model.dropout", draft.number("hidden_dropout", default=0.1), "hidden_dropout")
    draft.put("model.attention_dropout", draft.number("attention_dropout", default=0.1), "attention_dropout")
    draft.put("model.init_std", draft.number("init_method_std", default=0.02), "init_method_std")
    draft.drop_all(_INIT_ALIKE, Why.unsupported, "weights are drawn from a normal distribution")
    if draft.flag("apply_residual_connection_post_layernorm"):
        _structural(draft, there, "apply_residual_connection_post_layernorm", "the residual stream is never normed")
    windows = draft.find("window_size")
    if windows is not None:
        sizes = (
            str(windows.value).strip("()[] ").replace(" ", ",").split(",")
            if not isinstance(windows.value, list)
            else windows.value
        )
        try:
            # Megatron counts the tokens before the one that attends.
            draft.put("model.sliding_window", int(str(sizes[0])) + 1, "window_size")
        except ValueError:
            draft.drop("window_size", Why.by_hand, "it is model.sliding_window, in tokens")
        if draft.find("window_attn_skip_freq") is not None:
            draft.drop("window_attn_skip_freq", Why.by_hand, "it is model.layer_pattern, such as [window,window,full]")
    for name in (
        "num_experts",
        "multi_latent_attention",
        "mtp_num_layers",
        "hybrid_layer_pattern",
        "hybrid_override_pattern",
        "spec",
        "heterogeneous_layers_config_path",
        "no_rope_freq",
    ):
        found = draft.find(name)
        if found is None:
            continue
        if found.value in (False, "0", 0) or (name == "num_experts" and str(found.value) == "1"):
            draft.drop(name, Why.no_effect, "it is off")
        else:
            _structural(draft, there, name, "blocks are those of a dense GPT")
    draft.put("model.recompute", *_recompute(draft))


def _recompute(draft: Draft) -> tuple[str, str]:
    said = draft.find("recompute_granularity", "activations_checkpoint_granularity")
    if said is not None:
        return ("full" if str(said.value) == "full" else "selective"), said.name
    if draft.flag("recompute_activations"):
        return "selective", "recompute_activations"
    is_full = draft.flag("checkpoint_activations")
    method = draft.find("activations_checkpoint_method")
    if method is not None:
        return "full", method.name
    draft.find("deepspeed_activation_checkpointing")
    return ("full" if is_full else "none"), "checkpoint_activations"


def _structural(draft: Draft, there: There, name: str, reason: str) -> None:
    """Note a part of the model that cannot be had here."""
    draft.drop(name, Why.unsupported, reason)
    if name in draft.settings:
        there.not_counted = there.not_counted or f"{draft.settings[name].written} is not supported"
