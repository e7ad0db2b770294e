"""Weight gradients that are accumulated in place, instead of being made, handed over and added by autograd.

With several micro-batches autograd makes each weight gradient anew and then adds it to the sum so far: three passes
over a tensor as large as the weights. A GEMM can add to its result for the price of reading it.
Source: gradient accumulation fusion as in Megatron-LM, arXiv 2104.04473, section 4.2.
"""

from __future__ import annotations

from enum import Enum

import torch

from trainer.kernels.gemm import products_of

_ATTRIBUTE = "gradient_sink"


class GradientSink(Enum):
    """Place to which a layer adds the gradient of a weight that is trained. For a frozen weight none is computed."""

    autograd = "autograd"
    """It is returned, and autograd adds it up and runs the parameter's hooks."""
    in_place = "in_place"
    """The layer adds it to `parameter.grad` itself. For engines that look at gradients only before they step: hooks on
    gradients do not run for such a parameter, and its gradient is no part of the graph."""


def set_sink(parameter: torch.nn.Parameter, sink: GradientSink) -> None:
    """Set the place to which the layers add the gradient of a parameter; without it, they return it to autograd."""
    setattr(parameter, _ATTRIBUTE, sink)


def adds_in_place(parameter: torch.Tensor) -> bool:
    """Return whether the layer of `parameter` adds its gradient in place."""
    return getattr(parameter, _ATTRIBUTE, None) is GradientSink.in_place and not torch.compiler.is_compiling()


def weight_gradient(weight: torch.Tensor, grad: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor | None:
    """Return grad^T inputs, the gradient of `weight` [out, in]; None if it was added in place.

    Args:
        weight: the parameter.
        grad: gradient of the outputs, [rows, out].
        inputs: [rows, in].
    """
    products = products_of(weight)
    if not adds_in_place(weight):
        return products.weight_gradient(grad, inputs)
    if weight.grad is None:
        weight.grad = products.weight_gradient(grad, inputs)
    else:
        products.add_weight_gradient(weight.grad, grad, inputs)
    return None


def row_gradient(weight: torch.Tensor, ids: torch.Tensor, grad: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient of an embedding `weight` [V, H] whose rows `ids` have gradients `grad`; None if added.

    Args:
        weight: the parameter.
        ids: [...].
        grad: [..., H].
    """
    # On an accelerator index_add_ would add in another order every time.
    if adds_in_place(weight) and weight.grad is not None and weight.device.type == "cpu":
        weight.grad.index_add_(0, ids.flatten(), grad.flatten(0, -2))
        return None
    dense: torch.Tensor = torch.ops.aten.embedding_dense_backward(grad, ids, len(weight), -1, False)
    if not adds_in_place(weight):
        return dense
    weight.grad = dense if weight.grad is None else weight.grad.add_(dense)
    return None


def scaled_gradient(weight: torch.Tensor, grad: torch.Tensor, scale: torch.Tensor) -> torch.Tensor | None:
    """Return scale x grad in `weight`'s dtype, which takes over `grad`; None if it was added in place.

    Args:
        weight: the parameter.
        grad: gradient of the weight, of its shape, fp32.
        scale: [] fp32.
    """
    if not adds_in_place(weight):
        return grad.mul_(scale).to(weight.dtype)
    weight.grad = grad.mul_(scale) if weight.grad is None else weight.grad.addcmul_(grad, scale)
    return None
