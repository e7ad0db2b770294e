"""The model of a GPT-NeoX config, as keys here and as a shape to count."""

from __future__ import annotations

import math

from trainer.errors import ConfigError
from trainer.migration.draft import Draft, Why
from trainer.migration.foreign import Setting
from trainer.migration.model_numbers import head_dim_of, put_dims_of_rope, rounded, small_init
from trainer.migration.shape import Shape, There

_POSITIONS = {"learned": "learned", "rotary": "rope", "alibi": "alibi", "none": "none"}
_NORMS = {
    "layernorm": "layernorm",
    "te_layernorm": "layernorm",
    "non_parametric_layernorm": "layernorm",
    "rmsnorm": "rmsnorm",
    "te_rmsnorm": "rmsnorm",
}
_ACTIVATIONS = {
    "gelu": ("gelu", False),
    "geglu": ("gelu", True),
    "relu": ("relu", False),
    "reglu": ("relu", True),
    "silu": ("silu", False),
    "swish": ("silu", False),
    "swiglu": ("swiglu", True),
}
_FULL_ATTENTION = {"global", "flash"}


def put_model(draft: Draft, there: There) -> None:
    """Set `model.*` and count the model.

    Raises:
        ConfigError: a size is missing or is none.
    """
    names = ("hidden_size", "num_attention_heads")
    hidden, heads = draft.size(names[0]), draft.size(names[1])
    layers, length = draft.size("num_layers"), draft.size("seq_length")
    head_dim = head_dim_of(draft, hidden, heads, *names)
    groups = draft.size("num_kv_heads", default=heads)
    for key, value in (("hidden_size", hidden), ("num_layers", layers), ("num_attention_heads", heads)):
        draft.put(f"model.{key}", value, key)
    draft.put("model.num_key_value_heads", groups, "num_kv_heads")
    draft.put("model.seq_length", length, "seq_length")
    rows = _positions(draft, there, head_dim, hidden, length)
    vectors = _norm(draft, there)
    inner, is_gated = _mlp(draft, there, hidden)
    is_tied = not draft.flag("no_weight_tying")
    draft.put("model.tied_embeddings", is_tied, "no_weight_tying")
    draft.put("model.bias", True)
    attention_bias = draft.flag("use_bias_in_attn_linear", default=True)
    mlp_bias = draft.flag("use_bias_in_mlp", default=True)
    if not attention_bias:
        draft.put("model.qkv_bias", False, "use_bias_in_attn_linear")
        draft.put("model.attention_output_bias", False, "use_bias_in_attn_linear")
    if not mlp_bias:
        draft.put("model.mlp_bias", False, "use_bias_in_mlp")
    _wiring(draft, there, hidden * vectors * layers)
    _initial(draft, hidden, layers)
    _attention(draft, there)
    draft.put("model.dropout", draft.number("hidden_dropout"), "hidden_dropout")
    draft.put("model.attention_dropout", draft.number("attention_dropout"), "attention_dropout")
    draft.put("model.recompute", "full" if draft.flag("checkpoint_activations") else "none", "checkpoint_activations")
    there.shape = Shape(
        hidden,
        layers,
        heads,
        groups,
        head_dim,
        inner,
        is_gated,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=mlp_bias,
        vectors_per_norm=vectors,
        position_rows=rows,
        is_tied=is_tied,
    )


def _positions(draft: Draft, there: There, head_dim: int, hidden: int, length: int) -> int:
    """Set the positions and return the rows of the table that the model there has."""
    setting = draft.find("pos_emb")
    said = str(setting.value) if setting else "learned"
    here = _POSITIONS.get(said)
    if here is None:
        draft.put("model.position", "none", "pos_emb", note=f"there it is {said}, which is not available")
        _structural(draft, there, "pos_emb", f"positions are {', '.join(_POSITIONS.values())}")
        return 0
    draft.put("model.position", here, "pos_emb")
    rows = draft.integer("max_position_embeddings", default=length)
    if here == "rope":
        put_dims_of_rope(draft, head_dim, draft.number("rotary_pct", default=1.0), "rotary_pct")
        draft.put("model.rope_theta", draft.number("rotary_emb_base", default=10000.0), "rotary_emb_base")
    if here != "learned":
        draft.drop("max_position_embeddings", Why.no_effect, "such positions have no table")
        return 0
    offset = draft.integer("opt_pos_emb_offset")
    if offset:
        draft.put("model.position_offset", offset, "opt_pos_emb_offset")
    if rows > length:
        there.more_parameters += (rows - length) * hidden
        there.because.append(f"{rows - length:,} rows of its table of positions are behind the end of a sequence")
    return rows + offset


def _norm(draft: Draft, there: There) -> int:
    """Set the norms and return the vectors that each has there."""
    setting = draft.find("norm")
    said = str(setting.value) if setting else "layernorm"
    here = _NORMS.get(said)
    if here is None:
        draft.put("model.norm", "layernorm", "norm", note=f"there it is {said}, which is not available")
        _structural(draft, there, "norm", "norms are layernorm and rmsnorm")
        return 2
    draft.put("model.norm", here, "norm")
    if here == "rmsnorm":
        draft.put("model.norm_eps", draft.number("rms_norm_epsilon", default=1e-8), "rms_norm_epsilon")
        return 1
    draft.put("model.norm_eps", draft.number("layernorm_epsilon", default=1e-5), "layernorm_epsilon")
    if said == "non_parametric_layernorm":
        draft.put("model.norm_weight", False, "norm")
        draft.put("model.norm_bias", False, "norm")
        return 0
    return 2


def _mlp(draft: Draft, there: There, hidden: int) -> tuple[int, bool]:
    """Set the MLP and return its inner width and whether it has a gate."""
    setting = draft.find("activation")
    said = str(setting.value) if setting else "gelu"
    here, is_gated = _ACTIVATIONS.get(said, ("", False))
    if not here:
        draft.put("model.activation", "gelu", "activation", note=f"there it is {said}, which is not available")
        _structural(draft, there, "activation", f"activations are {', '.join(_ACTIVATIONS)}")
    elif here == "gelu" and not is_gated and draft.flag("bias_gelu_fusion"):
        draft.put(
            "model.activation",
            "gelu_tanh",
            "activation",
            "bias_gelu_fusion",
            note="the fused kernel there is the approximation by tanh",
        )
    else:
        draft.put("model.activation", here, "activation")
    if is_gated and here != "swiglu":
        draft.put("model.gated", True, "activation")
    multiple = max(1, draft.integer("mlp_multiple_of", default=1))
    names = ("intermediate_size", "ffn_hidden_size", "feedforward_size", "expansion_factor", "mlp_multiple_of")
    if draft.find(*names[:3]) is not None:
        width = draft.size(*names[:3])
    else:
        width = int(draft.number("expansion_factor", default=4.0) * hidden)
    # With a gate, gpt-neox takes two thirds, so that the MLP has as many parameters as one without.
    part = int(width * 2 / 3) // 2 if is_gated else width
    inner = -(-part // multiple) * multiple
    note = f"two thirds of {width}, half of that for each branch, as gpt-neox computes it" if is_gated else ""
    if inner != 4 * hidden:
        draft.put("model.ffn_hidden_size", inner, *names, note=note)
    return inner, is_gated


def _wiring(draft: Draft, there: There, unused: int) -> None:
    is_parallel = draft.flag("gpt_j_residual")
    is_shared = draft.flag("gpt_j_tied")
    if not is_parallel:
        draft.put("model.wiring", "pre", "gpt_j_residual")
        return
    draft.put("model.wiring", "parallel" if is_shared else "parallel_two_norms", "gpt_j_residual", "gpt_j_tied")
    if is_shared and unused:
        there.more_parameters += unused
        there.because.append("it keeps a second norm in each layer that gpt_j_tied does not use")


def _initial(draft: Draft, hidden: int, layers: int) -> None:
    stds = {
        "normal": draft.number("init_method_std", default=0.02),
        "small_init": small_init(hidden),
        "wang_init": 2 / layers / math.sqrt(hidden),
    }
    found = draft.find("init_method")
    said = str(found.value) if found else "normal"
    std = stds.get(said, stds["normal"])
    note = "" if said in stds else f"there it is {said}, which is not available"
    draft.put("model.init_std", rounded(std), "init_method", "init_method_std", note=note)
    behind = draft.find("output_layer_init_method")
    outputs = str(behind.value) if behind else "scaled_normal"
    there = stds.get(outputs, stds["normal"] / math.sqrt(2 * layers))
    ours = std / math.sqrt(2 * layers)
    if outputs not in (*stds, "scaled_normal") or not math.isclose(there, ours, rel_tol=1e-3):
        draft.drop(
            "output_layer_init_method",
            Why.unsupported,
            f"outputs into the residual stream begin with model.init_std / sqrt(2 x layers), {ours:.4g}"
            + (f", instead of {there:.4g}" if outputs in stds else ""),
        )


def _attention(draft: Draft, there: There) -> None:
    window = draft.find("sliding_window_width")
    if window is not None:
        draft.put("model.sliding_window", draft.integer("sliding_window_width"), "sliding_window_width")
    setting = draft.find("attention_config")
    if setting is not None:
        kinds = _kinds(setting)
        if kinds <= _FULL_ATTENTION:
            draft.drop("attention_config", Why.no_effect, "PyTorch takes the fastest attention kernel that there is")
        else:
            _structural(draft, there, "attention_config", "attention is full, or in a window (model.layer_pattern)")
    for name, off, reason in (
        ("use_qk_layernorm", False, "its norm has a weight for each head, and one for queries and keys together"),
        ("moe_num_experts", 1, "mixtures of experts cannot be trained"),
        ("num_unique_layers", None, "layers do not share weights"),
        ("soft_prompt_tuning", None, "prompts are not tuned"),
        ("soft_prompt_tuning.enabled", False, "prompts are not tuned"),
        ("use_mup", False, "its factors are keys of their own here: see docs/optimizers.md"),
        ("apply_query_key_layer_scaling", False, "scores are not scaled by the layer's number"),
    ):
        found = draft.find(name)
        if found is None or found.value == off:
            draft.drop(name, Why.no_effect, "it is off")
        else:
            _structural(draft, there, name, reason)


def _kinds(setting: Setting) -> set[str]:
    kinds: set[str] = set()
    groups = setting.value if isinstance(setting.value, list) else []
    for group in groups:
        if isinstance(group, str):
            kinds.add(group)
            continue
        if not isinstance(group, list) or not group or not isinstance(group[0], list):
            raise ConfigError(f"{setting.place}: {setting.written} must be [[[KIND, ...], TIMES], ...], but is not")
        kinds.update(str(kind) for kind in group[0])
    return kinds


def _structural(draft: Draft, there: There, name: str, reason: str) -> None:
    """Note a part of the model that cannot be had here."""
    draft.drop(name, Why.unsupported, reason)
    if name in draft.settings:
        there.not_counted = there.not_counted or f"{draft.settings[name].written} is not supported"
