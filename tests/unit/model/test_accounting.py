from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.reference import TINY, TINY_LLAMA
from trainer.config.plan import ModelSpec, make_model_spec
from trainer.config.schema import ActivationKind, ModelConfig, NormKind, PositionKind
from trainer.model.accounting import (
    flops_per_token,
    layer_forward_flops,
    layer_parameter_counts,
    parameter_count,
)
from trainer.model.gpt import GPT, ModelContext
from trainer.model.layers import layer_names
from trainer.tensor_parallel.random import StepClock
from trainer.topology.groups import SingleGroup


def gpt(hidden: int, layers: int, heads: int, length: int, vocab_size: int = 50257) -> ModelSpec:
    config = ModelConfig(hidden_size=hidden, num_layers=layers, num_attention_heads=heads, seq_length=length)
    return make_model_spec(config, vocab_size, 1)


def llama(hidden: int, layers: int, heads: int, groups: int, ffn: int, vocab_size: int) -> ModelSpec:
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
    return make_model_spec(config, vocab_size, 1)


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
def test_published_parameter_counts(spec: ModelSpec, published: int) -> None:
    assert parameter_count(spec) == published


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
def test_gpt3_sizes_are_those_of_the_paper(spec: ModelSpec, name_billions: float) -> None:
    assert parameter_count(spec) / 1e9 == pytest.approx(name_billions, rel=0.02)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        TINY_LLAMA,
        replace(TINY, tied_embeddings=False, bias=False),
        replace(TINY_LLAMA, bias=True, norm=NormKind.layernorm, num_key_value_heads=2),
        replace(TINY_LLAMA, position=PositionKind.learned, head_dim=10, bias=True),
    ],
)
def test_counts_equal_the_built_module(config: ModelConfig) -> None:
    spec = make_model_spec(replace(config, vocab_pad_multiple=1), 29, 1)
    model = GPT(ModelContext(SingleGroup(), False, spec=spec, clock=StepClock(1)))
    counts = layer_parameter_counts(spec)
    assert parameter_count(spec) == sum(parameter.numel() for parameter in model.parameters())
    for name, count in zip(layer_names(spec), counts, strict=True):
        own = [p.numel() for full, p in model.named_parameters() if full.startswith(f"{name}.")]
        assert sum(own) == count, name


def test_padding_does_not_count() -> None:
    spec = make_model_spec(replace(TINY, vocab_pad_multiple=64), 29, 4)
    assert parameter_count(spec) == parameter_count(replace(spec, padded_vocab_size=29))


def test_flops_follow_the_palm_formula() -> None:
    spec = gpt(768, 12, 12, 1024)
    matrices = 12 * 12 * 768**2 + 50257 * 768
    assert flops_per_token(spec) == 6 * matrices + 12 * 12 * 768 * 1024


def test_layer_flops_match_the_layers_and_a_window_bounds_attention() -> None:
    spec = gpt(768, 12, 12, 1024)
    layers = layer_forward_flops(spec)
    assert len(layers) == len(layer_names(spec))
    assert 3 * sum(layers) == flops_per_token(spec)
    names = dict(zip(layer_names(spec), layers, strict=True))
    assert names["head"] == 2 * 768 * 50257
    assert names["embedding"] == 0
    windowed = layer_forward_flops(replace(spec, sliding_window=256))
    assert layers[2] - windowed[2] == 4 * 768 * (1024 - 256)
    assert layer_forward_flops(replace(spec, sliding_window=4096)) == layers


def test_accounting_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trainer.model.accounting, trainer.model.layers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
