from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.models import drawn
from tests.helpers.thread_group import local_gradients, local_weights, run_ranks, whole
from trainer.errors import ConfigError
from trainer.spec.execution import Execution
from trainer.spec.parts import Linear
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.linear import ColumnParallelLinear, RowParallelLinear
from trainer.tensor_parallel.shard import ShardSpec, shard, unshard
from trainer.topology.groups import FakeGroup, Group

SIZES = [1, 2, 4]
S, B, WIDTH, OUT = 8, 2, 12, 24
SECTIONS = (16, 4, 4)


def column(group: Group, sequence_parallel: bool, bias: bool = True) -> ColumnParallelLinear:
    context = TensorContext(group, sequence_parallel, Execution(S, init_std=0.5, residual_std=0.5))
    return drawn(ColumnParallelLinear("c", Linear(WIDTH, SECTIONS, bias), context), group, 3)


def row(group: Group, sequence_parallel: bool, bias: bool = True) -> RowParallelLinear:
    context = TensorContext(group, sequence_parallel, Execution(S, init_std=0.5, residual_std=0.5))
    layer = drawn(RowParallelLinear("r", Linear(WIDTH, (OUT,), bias, cut_inputs=True), context), group, 3)
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(torch.linspace(-1, 1, OUT))
    return layer


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_column_parallel_equals_one_linear(size: int, sequence_parallel: bool, bias: bool) -> None:
    x, cotangent = torch.randn(S, B, WIDTH), torch.randn(S, B, OUT)
    output_spec = ShardSpec("y", (S, B, OUT), 2, SECTIONS)

    def body(group: Group) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
        layer = column(group, sequence_parallel, bias)
        mine = x.chunk(size, dim=0)[group.rank] if sequence_parallel else x
        mine = mine.clone().requires_grad_()
        y = layer(mine)
        y.backward(shard(cotangent, output_spec, group.rank, size))
        assert mine.grad is not None
        return layer, y.detach(), mine.grad

    layers, outputs, input_grads = zip(*run_ranks(size, body), strict=True)
    weights = whole(layers, [local_weights(layer) for layer in layers])
    full = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    expected_x = x.clone().requires_grad_()
    expected = F.linear(expected_x, full["c.weight"], full.get("c.bias"))
    expected.backward(cotangent)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(unshard(outputs, output_spec), expected.detach())
    input_grad = torch.cat(input_grads) if sequence_parallel else input_grads[-1]
    torch.testing.assert_close(input_grad, expected_x.grad)
    gradients = whole(layers, [local_gradients(layer) for layer in layers])
    for name, leaf in full.items():
        torch.testing.assert_close(gradients[name], leaf.grad)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_row_parallel_equals_one_linear(size: int, sequence_parallel: bool, bias: bool) -> None:
    x, cotangent = torch.randn(S, B, WIDTH), torch.randn(S, B, OUT)
    input_spec = ShardSpec("x", (S, B, WIDTH), 2, (WIDTH,))

    def body(group: Group) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
        layer = row(group, sequence_parallel, bias)
        mine = shard(x, input_spec, group.rank, size).requires_grad_()
        y = layer(mine)
        y.backward(cotangent.chunk(size, dim=0)[group.rank] if sequence_parallel else cotangent)
        assert mine.grad is not None
        return layer, y.detach(), mine.grad

    layers, outputs, input_grads = zip(*run_ranks(size, body), strict=True)
    weights = whole(layers, [local_weights(layer) for layer in layers])
    full = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    expected_x = x.clone().requires_grad_()
    expected = F.linear(expected_x, full["r.weight"], full.get("r.bias"))
    expected.backward(cotangent)  # type: ignore[no-untyped-call]
    output = torch.cat(outputs) if sequence_parallel else outputs[-1]
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(unshard(input_grads, input_spec), expected_x.grad)
    gradients = whole(layers, [local_gradients(layer) for layer in layers])
    for name, leaf in full.items():
        torch.testing.assert_close(gradients[name], leaf.grad)


def test_features_must_be_divisible() -> None:
    with pytest.raises(ConfigError, match=r"c\.weight has a block of 4 .* must be divisible .* \(8\)"):
        column(FakeGroup(0, 8), False)
    with pytest.raises(ConfigError, match=r"r\.weight has a block of 12 .* must be divisible .* \(8\)"):
        row(FakeGroup(0, 8), False)


def test_a_wrong_input_width_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        column(FakeGroup(0, 2), False)(torch.zeros(S, B, WIDTH + 1))


def test_sequence_parallel_keeps_only_its_shard_for_backward() -> None:
    def body(group: Group) -> set[tuple[int, ...]]:
        layer = column(group, sequence_parallel=True)
        kept: set[tuple[int, ...]] = set()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.add(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(torch.randn(S // 2, B, WIDTH, requires_grad=True))
        return kept

    assert run_ranks(2, body) == [{(S // 2, B, WIDTH), (OUT // 2, WIDTH)}] * 2
