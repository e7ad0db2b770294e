"""The oracle's rotary frequencies, in plain numbers, one frequency after the other. From the papers."""

from __future__ import annotations

import math

from trainer.config.schema import ModelConfig


def rotary_frequencies(spec: ModelConfig, dims: int, is_windowed: bool, length: int) -> tuple[list[float], float]:
    """Return the angle of one step for each pair, and the factor of what is turned.

    Args:
        spec: the model.
        dims: number of elements that are turned.
        is_windowed: the layer has a sliding window.
        length: tokens in the text.
    """
    theta = spec.local_rope_theta if is_windowed and spec.local_rope_theta is not None else spec.rope_theta
    scaling = spec.rope_scaling
    kind = "none" if is_windowed and not scaling.windowed else scaling.kind.value
    trained, s = scaling.original_length or spec.seq_length, scaling.factor
    if kind == "dynamic":  # NTK-aware: the base grows with the text
        alpha = s * max(length, trained) / trained - s + 1
        theta = theta * alpha ** (dims / (dims - 2))
    plain = [theta ** (-2 * i / dims) for i in range(dims // 2)]
    if kind == "linear":  # Chen et al. 2023: positions are divided
        return [f / s for f in plain], 1.0
    if kind == "llama3":
        return [_llama3(f, s, trained, spec) for f in plain], 1.0
    if kind == "yarn":
        return _yarn(plain, theta, dims, spec, trained), _yarn_temperature(spec)
    if kind == "longrope":
        divisors = scaling.long_factor if length > trained else scaling.short_factor
        own = 1.0 if s <= 1 else math.sqrt(1 + math.log(s) / math.log(trained))
        factor = own if scaling.attention_factor is None else scaling.attention_factor
        return [f / d for f, d in zip(plain, divisors, strict=True)], factor
    return plain, 1.0


def _llama3(f: float, s: float, trained: int, spec: ModelConfig) -> float:
    low, high = spec.rope_scaling.low_frequency_factor, spec.rope_scaling.high_frequency_factor
    turns = trained * f / (2 * math.pi)
    if turns > high:
        return f
    if turns < low:
        return f / s
    share = (turns - low) / (high - low)
    return (1 - share) * f / s + share * f


def _yarn(plain: list[float], theta: float, dims: int, spec: ModelConfig, trained: int) -> list[float]:
    scaling = spec.rope_scaling
    # The index of the frequency that makes r turns in the trained length: trained theta^(-2i/D) = 2 pi r.
    at = [
        dims / 2 * math.log(trained / (2 * math.pi * r)) / math.log(theta)
        for r in (scaling.beta_fast, scaling.beta_slow)
    ]
    if scaling.truncate:
        at = [math.floor(at[0]), math.ceil(at[1])]
    first, last = max(at[0], 0), min(at[1], dims - 1)
    found = []
    for i, f in enumerate(plain):
        ramp = (i - first) / (last - first if last != first else 0.001)
        ramp = min(max(ramp, 0.0), 1.0)
        found.append(ramp * f / scaling.factor + (1 - ramp) * f)
    return found


def _yarn_temperature(spec: ModelConfig) -> float:
    scaling = spec.rope_scaling
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    log = 0.1 * math.log(scaling.factor)
    if scaling.mscale and scaling.mscale_all_dim:
        return (scaling.mscale * log + 1) / (scaling.mscale_all_dim * log + 1)
    return log + 1
