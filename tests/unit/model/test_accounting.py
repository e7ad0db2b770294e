from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.models import context_of
from tests.helpers.options import OPTIONS
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.models import make_execution, make_model
from trainer.config.schema import ActivationKind, ModelConfig, NormKind, PositionKind
from trainer.model.gpt import GPT
from trainer.spec.model import Model
from trainer.tensor_parallel.shard import shard_spec


def gpt(hidden: int, layers: int, heads: int, length: int, vocab_size: int = 50257) -> Model:
    config = ModelConfig(hidden_size=hidden, num_layers=layers, num_attention_heads=heads, seq_length=length)
    return make_model(config, vocab_size)


def llama(hidden: int, layers: int, heads: int, groups: int, ffn: int, vocab_size: int) -> Model:
    config = ModelConfig(
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        ffn_hidden_size=ffn,
        seq_length=4096,
        position=PositionKind.rope,
        norm=NormKind.rmsnorm,
        activation=ActivationKind.swiglu,
        bias=False,
        tied_embeddings=False,
    )
    return make_model(config, vocab_size)


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        (gpt(768, 12, 12, 1024), 124_439_808),
        (gpt(1024, 24, 16, 1024), 354_823_168),
        (gpt(1280, 36, 20, 1024), 774_030_080),
        (gpt(1600, 48, 25, 1024), 1_557_611_200),
        (llama(4096, 32, 32, 32, 11008, 32000), 6_738_415_616),
        (llama(8192, 80, 64, 8, 28672, 32000), 68_976_648_192),
        (llama(4096, 32, 32, 8, 14336, 128256), 8_030_261_248),
        (llama(8192, 80, 64, 8, 28672, 128256), 70_553_706_496),
        (llama(4096, 32, 32, 8, 14336, 32000), 7_241_732_096),
    ],
)
def test_published_parameter_counts(spec: Model, published: int) -> None:
    assert spec.parameter_count == published


@pytest.mark.parametrize(
    ("spec", "name_billions"),
    [
        (gpt(768, 12, 12, 2048), 0.125),
        (gpt(1024, 24, 16, 2048), 0.350),
        (gpt(1536, 24, 16, 2048), 0.760),
        (gpt(2048, 24, 16, 2048), 1.3),
        (gpt(2560, 32, 32, 2048), 2.7),
        (gpt(4096, 32, 32, 2048), 6.7),
        (gpt(5120, 40, 40, 2048), 13.0),
        (gpt(12288, 96, 96, 2048), 175.0),
    ],
)
def test_gpt3_sizes_are_those_of_the_paper(spec: Model, name_billions: float) -> None:
    assert spec.parameter_count / 1e9 == pytest.approx(name_billions, rel=0.02)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        TINY_LLAMA,
        replace(TINY, tied_embeddings=False, bias=False),
        replace(TINY_LLAMA, bias=True, norm=NormKind.layernorm, num_key_value_heads=2),
        replace(TINY_LLAMA, position=PositionKind.learned, head_dim=10, bias=True),
        *OPTIONS.values(),
    ],
)
def test_counts_equal_the_built_module(config: ModelConfig) -> None:
    config = replace(config, vocab_pad_multiple=1)
    one = context_of(config, 29)
    model = GPT(one)
    assert one.spec.parameter_count == sum(parameter.numel() for parameter in model.parameters())
    for layer in one.spec.layers:
        named = [(shard_spec(parameter).name, parameter) for parameter in model.parameters()]
        own = {full: p for full, p in named if full.startswith(f"{layer.name}.")}
        assert layer.parameter_count == sum(parameter.numel() for parameter in own.values()), layer.name
        assert {tensor.name for tensor in layer.tensors()} == set(own)


def test_padding_does_not_count() -> None:
    padded, plain = (GPT(context_of(replace(TINY, vocab_pad_multiple=unit), 29)) for unit in (64, 1))
    rows = [sum(parameter.numel() for parameter in gpt.parameters()) for gpt in (padded, plain)]
    assert rows[0] - rows[1] == (64 - 29) * 16
    assert rows[1] == make_model(TINY, 29).parameter_count
    assert make_execution(replace(TINY, vocab_pad_multiple=64), 1).padded(29) == 64


def test_flops_follow_the_palm_formula() -> None:
    model = gpt(768, 12, 12, 1024)
    matrices = 12 * 12 * 768**2 + 50257 * 768
    assert model.flops_per_token(1024) == 6 * matrices + 12 * 12 * 768 * 1024


def test_a_window_bounds_attention() -> None:
    model = gpt(768, 12, 12, 1024)
    flops = {layer.name: layer.forward_flops(1024) for layer in model.layers}
    assert flops["head"] == 2 * 768 * 50257
    assert flops["embedding"] == flops["final_norm"] == 0
    attention = model.blocks[0].attention
    windowed = replace(attention, window=256)
    assert attention.forward_flops(1024) - windowed.forward_flops(1024) == 4 * 768 * (1024 - 256)
    assert replace(attention, window=4096).forward_flops(1024) == attention.forward_flops(1024)
