"""Rules about the options of the model's block: each has an effect, and those that exclude each other do not meet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields

from trainer.config.keys import joined, shown_value
from trainer.config.models import layer_attention
from trainer.config.rules_common import Case, Rule
from trainer.config.schema import (
    ActivationKind,
    LayerAttention,
    ModelConfig,
    NormKind,
    PositionKind,
    RopeScaling,
    RopeScalingKind,
)
from trainer.spec.rope import READ_BY

_MATTERS = "windowed"
"""Key of the scaling that every kind reads."""


def gate(case: Case) -> Iterator[str]:
    """Swiglu is the name of silu with a gate, and cannot be without one."""
    model = case.config.model
    if model.activation is ActivationKind.swiglu and model.gated is False:
        yield "model.gated must be true or null for model.activation=swiglu, but is false; use model.activation=silu"


def norm_parameters(case: Case) -> Iterator[str]:
    """Only a LayerNorm has a bias, and a norm without weight has nothing to add a bias or an offset to."""
    model = case.config.model
    if model.norm_bias and model.norm is NormKind.rmsnorm:
        yield "model.norm_bias must be false or null for model.norm=rmsnorm, but is true"
    elif model.norm_bias and not model.norm_weight:
        yield "model.norm_bias must be false or null for model.norm_weight=false, but is true"
    if model.norm_offset and not model.norm_weight:
        yield f"model.norm_offset must be 0 for model.norm_weight=false, but is {model.norm_offset:g}"


def learned_positions(case: Case) -> Iterator[str]:
    """The table that an offset counts in exists for learned positions only."""
    model = case.config.model
    if model.position_offset and model.position is not PositionKind.learned:
        yield (
            f"model.position_offset must be 0 for model.position={model.position.value}, but is {model.position_offset}"
        )


def rotary_positions(case: Case) -> Iterator[str]:
    """Rotary embedding rotates pairs of elements of a head, and its keys have an effect with it only."""
    model = case.config.model
    if model.position is not PositionKind.rope:
        if model.rope_theta != ModelConfig().rope_theta:
            yield (
                f"model.rope_theta needs model.position=rope, but that is {model.position.value}; model.rope_theta is "
                f"{model.rope_theta:g}"
            )
        set_keys = {
            "model.rope_dims": model.rope_dims,
            "model.local_rope_theta": model.local_rope_theta,
            "model.rope_scaling.kind": model.rope_scaling.kind.value.replace("none", "") or None,
        }
        for key, value in set_keys.items():
            if value is not None:
                yield f"{key} needs model.position=rope, but that is {model.position.value}; {key} is {value}"
        return
    head_dim = case.sizes.head_dim
    if model.rope_dims is None:
        if head_dim % 2:
            source = "" if model.head_dim else " = model.hidden_size / model.num_attention_heads"
            yield f"model.head_dim ({head_dim}{source}) must be even for model.position=rope, or set model.rope_dims"
    elif model.rope_dims % 2 or model.rope_dims > head_dim:
        yield f"model.rope_dims must be even and at most model.head_dim ({head_dim}), but is {model.rope_dims}"


def rope_scaling_keys(case: Case) -> Iterator[str]:
    """Each key of the scaling that is set is read by its kind."""
    scaling, plain = case.config.model.rope_scaling, RopeScaling()
    reads = ("kind", *READ_BY[scaling.kind], *([] if scaling.kind is RopeScalingKind.none else [_MATTERS]))
    for field in fields(RopeScaling):
        value = getattr(scaling, field.name)
        if field.name in reads or value == getattr(plain, field.name):
            continue
        kinds = [kind.value for kind, names in READ_BY.items() if field.name in names]
        allowed = joined(kinds) if field.name != _MATTERS else "one that scales"
        yield (
            f"model.rope_scaling.{field.name} has no effect with model.rope_scaling.kind={scaling.kind.value}: it "
            f"needs {allowed}; leave it out, it is {shown_value(value)}"
        )


def rope_scaling_values(case: Case) -> Iterator[str]:
    """The values of the scaling can be computed with, and scale something."""
    model = case.config.model
    scaling, kind = model.rope_scaling, model.rope_scaling.kind
    dims = model.rope_dims or case.sizes.head_dim
    if kind in (RopeScalingKind.linear, RopeScalingKind.llama3, RopeScalingKind.yarn) and scaling.factor == 1:
        yield f"model.rope_scaling.factor must not be 1 for model.rope_scaling.kind={kind.value}, but is 1"
    if kind is RopeScalingKind.dynamic and scaling.original_length is None:
        yield (
            "model.rope_scaling.original_length must be set for model.rope_scaling.kind=dynamic, which scales texts "
            "that are longer: null is model.seq_length, and no text is"
        )
    if kind is RopeScalingKind.dynamic and dims == 2:
        yield "model.rope_dims must be at least 4 for model.rope_scaling.kind=dynamic, but is 2"
    if kind is RopeScalingKind.llama3 and not scaling.low_frequency_factor < scaling.high_frequency_factor:
        yield (
            "model.rope_scaling.high_frequency_factor must be larger than model.rope_scaling.low_frequency_factor "
            f"({scaling.low_frequency_factor:g}), but is {scaling.high_frequency_factor:g}"
        )
    if kind is RopeScalingKind.yarn:
        yield from _yarn(case)
    if kind is RopeScalingKind.longrope:
        for key, factors in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
            if len(factors) != dims // 2 or not all(math.isfinite(one) and one > 0 for one in factors):
                yield (
                    f"model.rope_scaling.{key} must hold a number greater than 0 for each of the {dims // 2} "
                    f"frequencies (half of model.rope_dims, or of the head), but is {shown_value(factors)}"
                )


def _yarn(case: Case) -> Iterator[str]:
    model, scaling = case.config.model, case.config.model.rope_scaling
    if not scaling.beta_slow < scaling.beta_fast:
        yield (
            f"model.rope_scaling.beta_fast must be larger than model.rope_scaling.beta_slow ({scaling.beta_slow:g}), "
            f"but is {scaling.beta_fast:g}"
        )
    if not model.rope_theta > 1:
        yield f"model.rope_theta must be larger than 1 for model.rope_scaling.kind=yarn, but is {model.rope_theta:g}"
    if (scaling.mscale is None) != (scaling.mscale_all_dim is None):
        yield (
            "model.rope_scaling.mscale and model.rope_scaling.mscale_all_dim must be set together, but are "
            f"{shown_value(scaling.mscale)} and {shown_value(scaling.mscale_all_dim)}"
        )
    elif scaling.mscale is not None and scaling.attention_factor is not None:
        yield (
            "model.rope_scaling.mscale has no effect with model.rope_scaling.attention_factor "
            f"({scaling.attention_factor:g}); leave one of them out"
        )


def layer_pattern(case: Case) -> Iterator[str]:
    """Every word of the pattern is used, and says something that the other keys of attention agree with."""
    model = case.config.model
    pattern = model.layer_pattern
    if len(pattern) > model.num_layers:
        yield (
            f"model.layer_pattern must not be longer than model.num_layers ({model.num_layers}), but has "
            f"{len(pattern)} words"
        )
        return
    kinds = layer_attention(model)
    windowed = [kind for kind in kinds if kind.is_windowed]
    if windowed and model.sliding_window is None:
        yield f"model.layer_pattern has {windowed[0].value}, which needs model.sliding_window, but that is null"
    if not windowed and model.sliding_window is not None:
        yield (
            f"model.sliding_window ({model.sliding_window}) has no effect: no layer of model.layer_pattern is window "
            "or window_no_rope; leave one of them out"
        )
    plain = LayerAttention.full if model.sliding_window is None else LayerAttention.window
    if pattern and set(kinds) == {plain}:
        yield (f"model.layer_pattern has no effect: all layers are {plain.value}, as they are without it; leave it out")
    still = [kind for kind in kinds if not kind.rotates]
    if still and model.position is not PositionKind.rope:
        yield (
            f"model.layer_pattern has {still[0].value}, which needs model.position=rope, but that is "
            f"{model.position.value}; use {still[0].value.removesuffix('_no_rope')}"
        )


def layers_with_a_window(case: Case) -> Iterator[str]:
    """A rotation of their own, for layers with a window, needs such layers."""
    model = case.config.model
    if model.position is not PositionKind.rope:
        return
    kinds = layer_attention(model)
    if model.local_rope_theta is not None and LayerAttention.window not in kinds:
        yield (
            f"model.local_rope_theta ({model.local_rope_theta:g}) has no effect: no layer of model.layer_pattern is "
            "window; leave it out"
        )
    if model.rope_scaling.kind is not RopeScalingKind.none and not model.rope_scaling.windowed:
        for kind in (LayerAttention.window, LayerAttention.full):
            if kind not in kinds:
                effect = "has no effect" if kind is LayerAttention.window else "leaves no layer that is scaled"
                yield (
                    f"model.rope_scaling.windowed=false {effect}: no layer of model.layer_pattern is {kind.value}; "
                    "leave it out"
                )


RULES: tuple[Rule, ...] = (
    gate,
    norm_parameters,
    learned_positions,
    rotary_positions,
    rope_scaling_keys,
    rope_scaling_values,
    layer_pattern,
    layers_with_a_window,
)
