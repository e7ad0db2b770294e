from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.models import drawn_gpt
from trainer.config.plan import make_plan
from trainer.config.schema import ModelConfig, TridentConfig
from trainer.engine.sharding import Piece, Sharding, share_masters
from trainer.engine.sharding_of import WAYS, sharding_of
from trainer.engine.sharding_without_zero import WithoutZero
from trainer.engine.zero12_gradients import FlatGradients
from trainer.tensor_parallel.gradients import GradientSink


def engine_with(optimizer: object, basic: object = None) -> Any:
    return SimpleNamespace(module=nn.Linear(2, 2), optimizer=optimizer, basic_optimizer=basic or optimizer)


def _sharding_of(engine: Any) -> Sharding:
    return sharding_of(engine, make_plan(TridentConfig(), 50))


def test_every_wrapper_has_its_class() -> None:
    for wrapper, way in WAYS.items():
        made = _sharding_of(engine_with(object.__new__(wrapper)))
        assert type(made) is way
        assert made.sink(nn.Parameter(torch.zeros(1))) is GradientSink.autograd
    flat = _sharding_of(engine_with(object.__new__(FlatGradients)))
    assert flat.sink(nn.Parameter(torch.zeros(1))) is GradientSink.in_place
    plain = _sharding_of(engine_with(torch.optim.AdamW([nn.Parameter(torch.zeros(1))])))
    assert type(plain) is WithoutZero
    assert plain.sink(nn.Parameter(torch.zeros(1))) is GradientSink.in_place


def test_a_wrapper_that_nobody_knows_is_refused() -> None:
    class NewWrapper:
        pass

    basic = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    with pytest.raises(TypeError, match=r"plain, BF16_Optimizer, DeepSpeedZeroOptimizer, .*made a NewWrapper"):
        _sharding_of(engine_with(NewWrapper(), basic))
    # One of torch's that is not the one that we built is a wrapper like any other.
    with pytest.raises(TypeError, match="made a SGD"):
        _sharding_of(engine_with(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), basic))


def test_a_frozen_parameter_has_a_weight_and_no_moments() -> None:
    parameter = drawn_gpt(ModelConfig(hidden_size=2, num_attention_heads=1, num_layers=1), 3, 1).embedding.weight
    parameter.data = torch.arange(6.0).view(3, 2)
    sharding = _sharding_of(engine_with(torch.optim.AdamW([parameter])))
    assert sharding.kinds(parameter) == ("weight", "exp_avg", "exp_avg_sq")
    parameter.requires_grad_(False)
    piece = Piece(parameter, 2, 3, parameter, 2)
    assert sharding.kinds(parameter) == ("weight",)
    assert piece.elements(parameter).tolist() == [2.0, 3.0, 4.0]


def test_masters_are_shared_only_with_weights_of_their_type() -> None:
    master, weights = torch.ones(4), torch.ones(4)
    assert share_masters(iter([(master, weights)]))
    weights[0] = 5.0
    assert master[0] == 5.0
    half = torch.ones(4)
    assert not share_masters(iter([(half, torch.ones(4, dtype=torch.bfloat16)), (half, None)]))
