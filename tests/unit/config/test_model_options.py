# ruff: noqa: E501 - messages are compared whole
"""Keys of the model's options: what they make, and what is refused in which words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.config.compose import compose, from_yaml, to_yaml
from trainer.config.models import changed_keys, knows_its_length, make_model
from trainer.config.schema import (
    ActivationKind,
    LayerAttention,
    ModelConfig,
    NormKind,
    PositionKind,
    QueryKeyNorm,
    RopeScaling,
    RopeScalingKind,
    TridentConfig,
    Wiring,
)
from trainer.config.validate import problems
from trainer.errors import ConfigError
from trainer.spec.parts import Activation

ROPE = ModelConfig(position=PositionKind.rope)
W, F = LayerAttention.window, LayerAttention.full
LINEAR = RopeScaling(RopeScalingKind.linear, factor=2.0)
LONG = RopeScaling(RopeScalingKind.longrope, factor=2.0, short_factor=(1.0,) * 8, long_factor=(2.0,) * 8)
YARN = RopeScaling(RopeScalingKind.yarn, factor=2.0)
S = "model.rope_scaling"


def said(model: ModelConfig) -> list[str]:
    return problems(TridentConfig(model=model), None, 0)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (ModelConfig(activation=ActivationKind.swiglu, gated=False), "model.gated must be true or null for model.activation=swiglu, but is false; use model.activation=silu"),
        (ModelConfig(norm=NormKind.rmsnorm, norm_bias=True), "model.norm_bias must be false or null for model.norm=rmsnorm, but is true"),
        (ModelConfig(norm_weight=False, norm_bias=True), "model.norm_bias must be false or null for model.norm_weight=false, but is true"),
        (ModelConfig(norm_weight=False, norm_offset=1.0), "model.norm_offset must be 0 for model.norm_weight=false, but is 1"),
        (replace(ROPE, position_offset=2), "model.position_offset must be 0 for model.position=rope, but is 2"),
        (ModelConfig(rope_dims=4), "model.rope_dims needs model.position=rope, but that is learned; model.rope_dims is 4"),
        (ModelConfig(rope_scaling=LINEAR), f"{S}.kind needs model.position=rope, but that is learned; {S}.kind is linear"),
        (replace(ROPE, rope_dims=3), "model.rope_dims must be even and at most model.head_dim (16), but is 3"),
        (replace(ROPE, rope_dims=18), "model.rope_dims must be even and at most model.head_dim (16), but is 18"),
        (ModelConfig(rope_theta=500.0), "model.rope_theta needs model.position=rope, but that is learned; model.rope_theta is 500"),
        (replace(ROPE, rope_scaling=RopeScaling(RopeScalingKind.dynamic, factor=2.0)), f"{S}.original_length must be set for {S}.kind=dynamic, which scales texts that are longer: null is model.seq_length, and no text is"),
        (ModelConfig(layer_pattern=(F,)), "model.layer_pattern has no effect: all layers are full, as they are without it; leave it out"),
        (ModelConfig(layer_pattern=(W, W), sliding_window=4), "model.layer_pattern has no effect: all layers are window, as they are without it; leave it out"),
        (replace(ROPE, rope_scaling=RopeScaling(factor=8.0)), f"{S}.factor has no effect with {S}.kind=none: it needs linear, dynamic, llama3, yarn or longrope; leave it out, it is 8.0"),
        (replace(ROPE, rope_scaling=replace(LINEAR, truncate=False)), f"{S}.truncate has no effect with {S}.kind=linear: it needs yarn; leave it out, it is false"),
        (replace(ROPE, rope_scaling=replace(LINEAR, factor=1.0)), f"{S}.factor must not be 1 for {S}.kind=linear, but is 1"),
        (replace(ROPE, rope_dims=2, rope_scaling=RopeScaling(RopeScalingKind.dynamic, factor=2.0, original_length=64)), f"model.rope_dims must be at least 4 for {S}.kind=dynamic, but is 2"),
        (replace(ROPE, rope_scaling=RopeScaling(RopeScalingKind.llama3, 8.0, high_frequency_factor=1.0)), f"{S}.high_frequency_factor must be larger than {S}.low_frequency_factor (1), but is 1"),
        (replace(ROPE, rope_scaling=replace(YARN, beta_slow=32.0)), f"{S}.beta_fast must be larger than {S}.beta_slow (32), but is 32"),
        (replace(ROPE, rope_theta=1.0, rope_scaling=YARN), f"model.rope_theta must be larger than 1 for {S}.kind=yarn, but is 1"),
        (replace(ROPE, rope_scaling=replace(YARN, mscale=1.0)), f"{S}.mscale and {S}.mscale_all_dim must be set together, but are 1.0 and null"),
        (replace(ROPE, rope_scaling=replace(YARN, mscale=1.0, mscale_all_dim=1.0, attention_factor=2.0)), f"{S}.mscale has no effect with {S}.attention_factor (2); leave one of them out"),
        (replace(ROPE, rope_scaling=replace(LONG, long_factor=(1.0,))), f"{S}.long_factor must hold a number greater than 0 for each of the 8 frequencies (half of model.rope_dims, or of the head), but is [1.0]"),
        (ModelConfig(layer_pattern=(F,) * 5), "model.layer_pattern must not be longer than model.num_layers (4), but has 5 words"),
        (ModelConfig(layer_pattern=(W, F)), "model.layer_pattern has window, which needs model.sliding_window, but that is null"),
        (ModelConfig(layer_pattern=(F,), sliding_window=4), "model.sliding_window (4) has no effect: no layer of model.layer_pattern is window or window_no_rope; leave one of them out"),
        (ModelConfig(layer_pattern=(F, LayerAttention.full_no_rope)), "model.layer_pattern has full_no_rope, which needs model.position=rope, but that is learned; use full"),
        (replace(ROPE, local_rope_theta=10.0), "model.local_rope_theta (10) has no effect: no layer of model.layer_pattern is window; leave it out"),
        (replace(ROPE, rope_scaling=replace(LINEAR, windowed=False)), f"{S}.windowed=false has no effect: no layer of model.layer_pattern is window; leave it out"),
        (replace(ROPE, sliding_window=4, rope_scaling=replace(LINEAR, windowed=False)), f"{S}.windowed=false leaves no layer that is scaled: no layer of model.layer_pattern is full; leave it out"),
        (ModelConfig(final_softcap=0.0), "model.final_softcap must be greater than 0, but is 0.0"),
        (ModelConfig(clip_qkv=float("nan")), "model.clip_qkv must be greater than 0, but is nan"),
    ],
)  # fmt: skip
def test_what_is_refused_and_in_which_words(model: ModelConfig, problem: str) -> None:
    assert said(model) == [problem]


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(norm_bias=False, position_offset=2, head_bias=True, query_key_norm=QueryKeyNorm.full),
        replace(ROPE, rope_dims=4, rope_scaling=LINEAR, sliding_window=4, local_rope_theta=10.0),
        replace(ROPE, rope_scaling=replace(LINEAR, windowed=False), layer_pattern=(W, F), sliding_window=4),
        replace(ROPE, rope_scaling=LONG, layer_pattern=(F, LayerAttention.full_no_rope)),
        replace(ROPE, rope_scaling=replace(YARN, mscale=1.0, mscale_all_dim=0.5)),
        ModelConfig(position=PositionKind.alibi, wiring=Wiring.parallel, activation=ActivationKind.relu2, gated=True),
        ModelConfig(position=PositionKind.none, norm_weight=False, final_norm=False, embedding_norm=True),
    ],
)
def test_what_is_allowed(model: ModelConfig) -> None:
    assert said(model) == []


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("model.attn_logit_softcapping=50", "attention scores are not capped"),
        ("model.attention_sinks=true", "attention has no sinks"),
        ("model.kv_lora_rank=512", "multi-head latent attention (MLA) is not available"),
        ("model.rope_scaling=linear", "'model.rope_scaling' is a group of keys and takes no value itself"),
        ("model.rope_scaling.facto=2", "did you mean 'model.rope_scaling.factor'?"),
    ],
)
def test_what_there_is_not_is_named(word: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([word])
    (problem,) = caught.value.problems
    assert answer in problem


def test_keys_below_a_key_are_written_and_read_back() -> None:
    words = ["model.position=rope", f"{S}.kind=longrope", f"{S}.short_factor=[1,2.5]", "model.layer_pattern=[full]"]
    config = compose(words)
    assert config.model.rope_scaling == RopeScaling(RopeScalingKind.longrope, short_factor=(1.0, 2.5))
    assert from_yaml(to_yaml(config)) == config


def test_a_pattern_says_what_each_layer_does() -> None:
    pattern = (W, F, LayerAttention.full_no_rope)
    model = replace(
        ROPE,
        layer_pattern=pattern,
        sliding_window=4,
        local_rope_theta=10.0,
        rope_scaling=replace(LINEAR, windowed=False),
    )
    attentions = [block.attention for block in make_model(model, 9).blocks]
    assert [attention.window for attention in attentions] == [4, None, None, 4]
    assert [attention.rope and attention.rope.theta for attention in attentions] == [10.0, 10000.0, None, 10.0]
    assert [attention.rope and attention.rope.scaling for attention in attentions] == [None, LINEAR, None, None]


def test_biases_and_norms_follow_the_general_key_unless_they_have_their_own() -> None:
    block = make_model(ModelConfig(bias=False, qkv_bias=True), 9).blocks[0]
    assert (block.attention.bias, block.attention.output_bias, block.feed_forward.bias) == (True, False, False)
    assert not block.norm.bias
    block = make_model(ModelConfig(mlp_bias=False, attention_output_bias=False, norm_bias=False), 9).blocks[0]
    assert (block.attention.bias, block.attention.output_bias, block.feed_forward.output_bias) == (True, False, False)
    assert block.norm.weight
    assert not block.norm.bias


def test_swiglu_is_silu_with_a_gate() -> None:
    both = [ModelConfig(activation=ActivationKind.swiglu), ModelConfig(activation=ActivationKind.silu, gated=True)]
    assert make_model(both[0], 9) == make_model(both[1], 9)
    assert (
        make_model(ModelConfig(activation=ActivationKind.silu), 9).blocks[0].feed_forward.activation is Activation.silu
    )
    assert not make_model(ModelConfig(activation=ActivationKind.silu), 9).blocks[0].feed_forward.gated


def test_norms_of_queries_and_keys_have_the_width_that_they_normalise() -> None:
    sizes = {QueryKeyNorm.head: (16, 16), QueryKeyNorm.full: (64, 32)}
    for kind, expected in sizes.items():
        attention = (
            make_model(ModelConfig(num_key_value_heads=2, query_key_norm=kind, norm_offset=1.0), 9).blocks[0].attention
        )
        assert attention.query_norm is not None
        assert attention.key_norm is not None
        assert (attention.query_norm.width, attention.key_norm.width) == expected
        assert attention.query_norm.offset == 1.0
        assert not attention.query_norm.bias


def test_a_length_is_a_part_of_the_model_where_it_counts_or_scales_positions() -> None:
    assert knows_its_length(ModelConfig())
    assert not knows_its_length(ROPE)
    assert not knows_its_length(replace(ROPE, rope_scaling=LINEAR))
    assert knows_its_length(replace(ROPE, rope_scaling=YARN))
    assert not knows_its_length(replace(ROPE, rope_scaling=replace(YARN, original_length=64)))


def test_keys_that_make_another_model_are_named_one_by_one() -> None:
    here = replace(ROPE, rope_scaling=YARN)
    assert changed_keys(replace(here, rope_scaling=replace(YARN, factor=4.0)), here) == {
        "rope_scaling.factor": (4.0, 2.0)
    }
    assert changed_keys(replace(ROPE, gated=False), ROPE) == {}
    assert changed_keys(replace(ROPE, norm_offset=1.0), ROPE) == {"norm_offset": (1.0, 0.0)}
