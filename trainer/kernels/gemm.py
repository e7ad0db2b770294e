"""The matrix multiplications (GEMMs) of a linear layer, by the library that is fastest for the weight's processor.

PyTorch multiplies fp32 on a CPU with MKL, which keeps to AVX2 on processors that are not Intel's: on an AMD EPYC with
AVX-512 oneDNN, which is in PyTorch as well, takes half the time (docs/performance.md). The choice of the library
travels with the weight, so that no layer has to decide.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

_ATTRIBUTE = "trident_products"
_FEWEST_ROWS = 64
"""Number of rows from which oneDNN, which copies operands with strides, is faster at the weight's gradient."""
_BLOCK_ELEMENTS = 1 << 19
"""Elements of a product that are added to a gradient at a time: 2 MiB, which are still in the cache when they are."""


class Products:
    """GEMMs by PyTorch's own choice for the device."""

    def forward(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return hidden weight^T + bias: `[..., in]`, `[out, in]`, `[out]` to `[..., out]`."""
        return F.linear(hidden, weight, bias)

    def input_gradient(self, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return grad weight: `[..., out]`, `[out, in]` to `[..., in]`."""
        return grad.matmul(weight)

    def weight_gradient(self, grad: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return grad^T inputs: `[rows, out]`, `[rows, in]` to `[out, in]`."""
        return grad.t().mm(inputs)

    def add_weight_gradient(
        self, total: torch.Tensor, grad: torch.Tensor, inputs: torch.Tensor, fresh: bool = False
    ) -> None:
        """Add grad^T inputs to `total` `[out, in]`; if it is `fresh`, its content is ignored."""
        total.addmm_(grad.t(), inputs, beta=0.0 if fresh else 1.0)


class OneDNNProducts(Products):
    """fp32 on a CPU by oneDNN. The operator is the one that torch.compile puts into its programs for a CPU."""

    def forward(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """See `Products`."""
        return _times_transposed(hidden, weight, bias)

    def input_gradient(self, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """See `Products`."""
        return _times_transposed(grad, weight.t())

    def weight_gradient(self, grad: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """See `Products`."""
        if len(grad) < _FEWEST_ROWS:
            return super().weight_gradient(grad, inputs)
        return _times_transposed(grad.t(), inputs.t())

    def add_weight_gradient(
        self, total: torch.Tensor, grad: torch.Tensor, inputs: torch.Tensor, fresh: bool = False
    ) -> None:
        """See `Products`."""
        if len(grad) < _FEWEST_ROWS:
            super().add_weight_gradient(total, grad, inputs, fresh)
            return
        outer, inner = grad.t(), inputs.t()
        size = max(1, _BLOCK_ELEMENTS // inner.shape[0])
        for block, rows in zip(torch.split(total, size), torch.split(outer, size), strict=True):
            product = _times_transposed(rows, inner)
            if fresh:
                block.copy_(product)
            else:
                block.add_(product)


def _times_transposed(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return out


_DEFAULT = Products()
_ONEDNN = OneDNNProducts()


def has_onednn() -> bool:
    """Return whether this build of PyTorch can multiply by oneDNN."""
    return bool(torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))  # type: ignore[no-untyped-call]


def multiply_by_onednn(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Let oneDNN multiply with these weights; they must be fp32 and on the CPU."""
    for parameter in parameters:
        setattr(parameter, _ATTRIBUTE, _ONEDNN)


def products_of(weight: torch.Tensor) -> Products:
    """Return the GEMMs of a parameter's library. In a program of torch.compile the compiler chooses."""
    found: Products = getattr(weight, _ATTRIBUTE, _DEFAULT)
    return _DEFAULT if torch.compiler.is_compiling() else found


def has_own_products(weight: torch.Tensor) -> bool:
    """Return whether another library than PyTorch's choice multiplies with a parameter."""
    return products_of(weight) is not _DEFAULT
