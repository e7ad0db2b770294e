"""Scaling a model down keeps what layers and layouts branch on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from trainer.config.compose import compose, options
from trainer.config.models import layer_attention, make_model, sizes
from trainer.config.schema import (
    LayoutConfig,
    LoraConfig,
    ModelConfig,
    PositionKind,
    RopeScaling,
    RopeScalingKind,
    TridentConfig,
)
from trainer.config.validate import ARITHMETIC, broken_rules
from trainer.proving.scaled_model import Extent, scaled_model, told_scale

MODELS = [name for name in options()["model"] if name != "hf"]


def of(name: str) -> ModelConfig:
    return compose([f"model={name}"]).model


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_is_scaled_down_to_a_legal_model_with_the_same_parts(name: str) -> None:
    model = of(name)
    tensor = 2 if model.num_attention_heads % 2 == 0 else 1
    small = scaled_model(model, model.vocab_size, Extent(tensor, 4))
    layout = LayoutConfig(tensor_parallel_size=tensor, sequence_parallel=tensor > 1)
    broken = broken_rules(TridentConfig(model=small, layout=layout))
    assert [line for rule, line in broken if rule in ARITHMETIC] == []
    big, little = make_model(model, 50), make_model(small, 50)
    assert sum(tensor.numel for tensor in little.tensors.values()) < 1_000_000
    assert {name.split(".", 2)[-1] for name in little.tensors} == {name.split(".", 2)[-1] for name in big.tensors}
    assert set(layer_attention(small)) == set(layer_attention(model))
    old, new = sizes(model), sizes(small)
    shared, few = model.num_attention_heads // old.num_key_value_heads, small.num_attention_heads
    assert few // new.num_key_value_heads == shared
    assert (old.num_key_value_heads == 1) == (new.num_key_value_heads == 1)
    assert few % 2 == model.num_attention_heads % 2
    wide = (model.num_attention_heads * old.head_dim) / model.hidden_size
    assert (few * new.head_dim) / small.hidden_size == pytest.approx(wide, rel=0.1)
    if model.sliding_window is not None and model.sliding_window < model.seq_length:
        assert small.sliding_window is not None
        assert small.sliding_window < small.seq_length
    if model.embedding_scale != 1:
        assert small.embedding_scale == pytest.approx(math.sqrt(small.hidden_size))


def test_it_says_what_became_smaller() -> None:
    model = of("mistral_7b")
    told = told_scale(model, scaled_model(model, None, Extent(2, 2)))
    assert told.startswith("hidden_size 4,096 -> 64, layers 32 -> 2, heads 32 -> 8, key/value heads 8 -> 2,")
    assert "window 4,096 -> 8" in told
    assert told.endswith("kept: gated swiglu, rmsnorm, pre, rope")


@pytest.mark.parametrize("tensor", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("groups", [None, 1, 60])
def test_heads_are_divisible_by_the_ranks_that_share_them(tensor: int, groups: int | None) -> None:
    model = ModelConfig(hidden_size=960, num_attention_heads=120, num_key_value_heads=groups)
    small = scaled_model(model, 64, Extent(tensor, 2))
    found = sizes(small)
    assert small.num_attention_heads % tensor == 0
    assert found.num_key_value_heads % tensor == 0 or tensor % found.num_key_value_heads == 0
    assert found.ffn_hidden_size % tensor == 0


def test_heads_that_ranks_share_are_shared_still() -> None:
    model = ModelConfig(hidden_size=64, num_attention_heads=32, num_key_value_heads=4, head_dim=4)
    assert sizes(scaled_model(model, 64, Extent(4, 2, shares_heads=True))).num_key_value_heads == 2


def test_more_query_heads_than_a_trial_can_have_are_cut_and_stay_odd() -> None:
    model = ModelConfig(hidden_size=71 * 4, num_attention_heads=71, num_key_value_heads=1)
    assert scaled_model(model, 64, Extent()).num_attention_heads == 7


def test_a_vocabulary_is_padded_if_the_models_is() -> None:
    model = ModelConfig(vocab_pad_multiple=128)
    for vocab_size, is_padded in ((50257, True), (51200, False), (None, True)):
        small = scaled_model(model, vocab_size, Extent(2, 2))
        assert small.vocab_size is not None
        assert (small.vocab_size % (small.vocab_pad_multiple * 2) > 0) == is_padded


def test_sizes_that_other_keys_follow_are_followed() -> None:
    rope = RopeScaling(
        RopeScalingKind.longrope, 4.0, original_length=64, short_factor=(1.0,) * 16, long_factor=tuple(range(1, 17))
    )
    model = ModelConfig(
        hidden_size=128, head_dim=64, position=PositionKind.rope, rope_dims=32, attention_scale=1 / 8, rope_scaling=rope
    )
    small = scaled_model(model, None, Extent())
    assert small.head_dim == 8
    assert small.rope_dims == 4
    assert small.attention_scale == pytest.approx(1 / math.sqrt(8))
    assert small.rope_scaling.original_length == 8
    assert list(small.rope_scaling.long_factor) == [1, 9]
    odd = scaled_model(replace(ModelConfig(), head_dim=25, seq_length=33, dropout=0.1), None, Extent())
    assert odd.head_dim == 9
    assert odd.seq_length % 2 == 1
    assert odd.dropout == 0


def test_adapters_keep_their_scale() -> None:
    small = scaled_model(ModelConfig(lora=LoraConfig(rank=16, alpha=32)), None, Extent()).lora
    assert small.rank == 2
    assert small.alpha == pytest.approx(4.0)
    stable = scaled_model(ModelConfig(lora=LoraConfig(rank=8, alpha=32, rank_stabilised=True)), None, Extent()).lora
    assert stable.alpha == pytest.approx(16.0)
