"""The way from the head's product to the logits: bias, factor and soft cap.

Source: soft cap arXiv 2408.00118 (Gemma 2), section 2; the factor as in Cohere and Granite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.spec.parts import Head


@dataclass(frozen=True)
class LogitShape:
    """cap x tanh(scale x product / cap); without a cap, scale x product."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, head: Head) -> LogitShape:
        """Return what a head does with its product."""
        return cls(head.scale, head.softcap)

    def logits(self, products: torch.Tensor) -> torch.Tensor:
        """Return the logits of products with the weight, the bias added; autograd knows the way back."""
        scaled = products if self.scale == 1.0 else products * self.scale
        return scaled if self.softcap is None else torch.tanh(scaled / self.softcap) * self.softcap

    def logits_in_place(self, products: torch.Tensor) -> torch.Tensor:
        """Turn products into logits, where autograd is not asked for the way back: see `product_gradient`."""
        if self.scale != 1.0:
            products.mul_(self.scale)
        return products if self.softcap is None else products.div_(self.softcap).tanh_().mul_(self.softcap)

    def product_gradient(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Turn the gradient of logits, in place, into that of the products.

        The derivative of the cap is 1 - tanh^2, and the tanh is logits / cap.
        """
        if self.softcap is not None:
            grad.mul_(1.0 - (logits.float() / self.softcap).square())
        return grad if self.scale == 1.0 else grad.mul_(self.scale)
