from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.models import drawn_gpt
from tests.helpers.thread_group import local_gradients, run_ranks, whole
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.schema import ModelConfig
from trainer.micro_batch import MicroBatch
from trainer.model.gpt import GPT
from trainer.tensor_parallel.gradients import (
    GradientSink,
    row_gradient,
    scaled_gradient,
    set_sink,
    weight_gradient,
)
from trainer.tensor_parallel.shard import shard_spec
from trainer.topology.groups import Group

VOCABULARY = 13


def gradients(model: ModelConfig, size: int, sequence_parallel: bool, in_place: bool) -> dict[str, torch.Tensor]:
    """Return the sum of the gradients of three micro-batches."""
    ids = torch.randint(0, VOCABULARY, (3, 2, model.seq_length + 1), generator=torch.Generator().manual_seed(5))

    def body(group: Group) -> tuple[GPT, dict[str, torch.Tensor]]:
        gpt = drawn_gpt(model, VOCABULARY, 3, group, sequence_parallel)
        if in_place:
            for parameter in gpt.parameters():
                set_sink(parameter, GradientSink.in_place)
        for batch in ids:
            gpt(MicroBatch.of(batch[:, :-1], batch[:, 1:])).backward()
        return gpt, local_gradients(gpt)

    models, found = zip(*run_ranks(size, body), strict=True)
    return whole(models, found)


@pytest.mark.parametrize("fused_loss", [True, False])
@pytest.mark.parametrize("model", [TINY, TINY_LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_gradients_added_in_place_are_those_of_autograd(
    model: ModelConfig, size: int, sequence_parallel: bool, fused_loss: bool
) -> None:
    model = replace(model, fused_loss=fused_loss)
    expected = gradients(model, size, sequence_parallel, in_place=False)
    found = gradients(model, size, sequence_parallel, in_place=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def parameter(*shape: int) -> torch.nn.Parameter:
    made = torch.nn.Parameter(torch.randn(*shape))
    set_sink(made, GradientSink.in_place)
    return made


def test_the_sum_stays_in_the_same_tensor() -> None:
    weight, grad, inputs = parameter(4, 3), torch.randn(6, 4), torch.randn(6, 3)
    assert weight_gradient(weight, grad, inputs) is None
    assert weight.grad is not None
    place = weight.grad.data_ptr()
    assert weight_gradient(weight, grad, inputs) is None
    assert scaled_gradient(weight, torch.ones(4, 3), torch.tensor(0.5)) is None
    assert weight.grad.data_ptr() == place
    torch.testing.assert_close(weight.grad, 2 * grad.t() @ inputs + 0.5)


def test_rows_are_added_to_what_is_there() -> None:
    weight, ids, grad = parameter(5, 3), torch.tensor([[1, 1], [4, 0]]), torch.randn(2, 2, 3)
    leaf = weight.detach().clone().requires_grad_()
    F.embedding(ids, leaf).backward(grad)  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    for times in (1, 2):
        assert row_gradient(weight, ids, grad) is None
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, times * leaf.grad)


def test_other_parameters_get_their_gradients_from_autograd() -> None:
    weight, grad, inputs = torch.nn.Parameter(torch.randn(4, 3)), torch.randn(6, 4), torch.randn(6, 3)
    torch.testing.assert_close(weight_gradient(weight, grad, inputs), grad.t() @ inputs)
    assert scaled_gradient(weight.bfloat16(), torch.ones(4, 3), torch.tensor(0.5)).dtype is torch.bfloat16  # type: ignore[union-attr]
    assert row_gradient(weight, torch.tensor([[1, 2]]), torch.ones(1, 2, 3)) is not None
    assert weight.grad is None


@pytest.mark.parametrize("fused_loss", [True, False])
@pytest.mark.parametrize("frozen", ["blocks.0.", "head.", "blocks.1.mlp.up.weight", "blocks.1.mlp.up.bias"])
@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_a_frozen_weight_gets_none_and_the_others_what_they_got(
    monkeypatch: pytest.MonkeyPatch, size: int, sequence_parallel: bool, frozen: str, fused_loss: bool
) -> None:
    model = replace(TINY, tied_embeddings=False, fused_loss=fused_loss)
    ids = torch.randint(0, VOCABULARY, (2, model.seq_length + 1), generator=torch.Generator().manual_seed(5))
    asked: list[str] = []

    def noted(function: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor | None]:
        def call(weight: torch.nn.Parameter, *others: torch.Tensor) -> torch.Tensor | None:
            asked.append(shard_spec(weight).name)
            return function(weight, *others)

        return call

    for module in ("linear", "fused_loss"):
        monkeypatch.setattr(f"trainer.tensor_parallel.{module}.weight_gradient", noted(weight_gradient))
    monkeypatch.setattr("trainer.tensor_parallel.fused_loss.scaled_gradient", noted(scaled_gradient))

    def body(group: Group, name: str) -> dict[str, torch.Tensor]:
        gpt = drawn_gpt(model, VOCABULARY, 3, group, sequence_parallel)
        for parameter in gpt.parameters():
            set_sink(parameter, GradientSink.in_place)
            parameter.requires_grad_(not shard_spec(parameter).name.startswith(name))
        gpt(MicroBatch.of(ids[:, :-1], ids[:, 1:])).backward()
        return {shard_spec(p).name: p.grad for p in gpt.parameters() if p.grad is not None}

    everything = run_ranks(size, lambda group: body(group, "nothing"))
    assert any(name.startswith(frozen) for name in asked) == (not frozen.endswith("bias"))
    asked.clear()
    for found, expected in zip(run_ranks(size, lambda group: body(group, frozen)), everything, strict=True):
        assert found.keys() == {name for name in expected if not name.startswith(frozen)}
        assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())
    assert not [name for name in asked if name.startswith(frozen)]
