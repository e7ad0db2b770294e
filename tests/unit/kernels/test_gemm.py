from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.kernels import gemm
from trainer.kernels.gemm import (
    OneDNNProducts,
    Products,
    has_onednn,
    has_own_products,
    multiply_by_onednn,
    products_of,
)
from trainer.tensor_parallel.gradients import GradientSink, set_sink
from trainer.tensor_parallel.linear import linear

BOTH = [Products(), OneDNNProducts()]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with a product in fp64: a sum of some hundred terms of size one is good to some 1e-5 in fp32."""
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", BOTH)
@pytest.mark.parametrize("rows", [1, 7, 63, 64, 300])
def test_products_are_those_of_a_linear_layer(library: Products, rows: int) -> None:
    inputs, weight, bias, grad = torch.randn(rows, 12), torch.randn(20, 12), torch.randn(20), torch.randn(rows, 20)
    x, w, g = inputs.double(), weight.double(), grad.double()
    close(library.forward(inputs, weight), x @ w.t())
    close(library.forward(inputs.view(rows, 1, 12), weight, bias), (x @ w.t() + bias).view(rows, 1, 20))
    close(library.input_gradient(grad, weight), g @ w)
    close(library.input_gradient(grad.view(1, rows, 20), weight), (g @ w).view(1, rows, 12))
    close(library.weight_gradient(grad, inputs), g.t() @ x)
    total = torch.ones(20, 12)
    library.add_weight_gradient(total, grad, inputs)
    close(total, 1 + g.t() @ x)
    library.add_weight_gradient(total.fill_(torch.nan), grad, inputs, fresh=True)
    close(total, g.t() @ x)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_large_gradient_is_added_block_by_block(fresh: bool) -> None:
    """The rows do not come out even: the last block is a short one."""
    grad, inputs = torch.randn(64, 1030), torch.randn(64, 1024)
    total = torch.ones(1030, 1024)
    OneDNNProducts().add_weight_gradient(total, grad, inputs, fresh)
    close(total, (0 if fresh else 1) + grad.double().t() @ inputs.double())


@pytest.mark.parametrize("library", BOTH)
def test_a_view_across_the_grain_is_multiplied_as_it_reads(library: Products) -> None:
    inputs, weight = torch.randn(12, 300).t(), torch.randn(12, 20).t()
    close(library.forward(inputs, weight), inputs.double() @ weight.double().t())


def test_the_library_travels_with_the_weight() -> None:
    layer = nn.Linear(3, 2)
    assert type(products_of(layer.weight)) is Products
    assert not has_own_products(layer.weight)
    multiply_by_onednn(layer.parameters())
    assert type(products_of(layer.weight)) is OneDNNProducts
    assert has_own_products(layer.weight)
    assert type(products_of(nn.Linear(3, 2).weight)) is Products


def test_a_compiled_program_chooses_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(3, 2)
    multiply_by_onednn(layer.parameters())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert type(products_of(layer.weight)) is Products
    assert not has_own_products(layer.weight)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [8, 300])
def test_a_layer_learns_the_same_by_onednn(in_place: bool, has_bias: bool, rows: int) -> None:
    layer = nn.Linear(12, 20, bias=has_bias)
    multiply_by_onednn(layer.parameters())
    if in_place:
        for parameter in layer.parameters():
            set_sink(parameter, GradientSink.in_place)
    weights = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    for _ in range(2):
        inputs, grad = torch.randn(rows, 2, 12, requires_grad=True), torch.randn(rows, 2, 20)
        twin = inputs.detach().clone().requires_grad_()
        out = linear(inputs, layer.weight, layer.bias if has_bias else None)
        expected = F.linear(twin, *weights)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        out.backward(grad)  # type: ignore[no-untyped-call]
        expected.backward(grad)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(inputs.grad, twin.grad, rtol=1e-5, atol=1e-5)
    for parameter, reference in zip(layer.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("again", "calls"), [(False, 3), (True, 4)])
def test_the_operator_is_really_called(again: bool, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass that is computed again goes back by the same library, and its gradient to the same place."""
    called: list[int] = []
    original = gemm._times_transposed

    def counted(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        called.append(1)
        return original(left, right, bias)

    monkeypatch.setattr(gemm, "_times_transposed", counted)
    weight = nn.Parameter(torch.randn(4, 4))
    multiply_by_onednn([weight])
    set_sink(weight, GradientSink.in_place)
    inputs, total = torch.randn(256, 4, requires_grad=True), torch.ones(4, 4)
    weight.grad = total
    out = checkpoint(linear, inputs, weight, use_reentrant=False) if again else linear(inputs, weight)
    out.sum().backward()
    assert len(called) == calls
    assert weight.grad is total
    torch.testing.assert_close(total, 1 + inputs.detach().sum(dim=0).expand(4, 4), rtol=1e-4, atol=1e-4)


def test_a_build_without_the_operator_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_onednn()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_onednn()
