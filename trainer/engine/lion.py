"""Lion: steps by the sign of a mean of gradients."""

from __future__ import annotations

from typing import Any

import torch

_BLOCK = 1 << 22
"""Elements that are stepped at once: the memory of a step besides."""


class Lion(torch.optim.Optimizer):
    """Lion with decoupled weight decay: Algorithm 2 of arXiv 2302.06675.

    Element by element, so that it may step any part of a tensor: c = beta1 m + (1 - beta1) g;
    w = (1 - lr decay) w - lr sign(c); m = beta2 m + (1 - beta2) g. It keeps m under the name that AdamW has for its
    first moment, and counts steps as AdamW does.

    Args:
        groups: parameters with their `weight_decay`.
        lr: learning rate.
        betas: beta1 and beta2.
    """

    def __init__(self, groups: list[dict[str, object]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient. Local; no host sync."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[weight], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight)
        state["step"] += 1
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        flat = (weight.view(-1), gradient.reshape(-1), state["exp_avg"].view(-1))
        for w, g, m in zip(*(tensor.split(_BLOCK) for tensor in flat), strict=True):
            w.sub_(torch.lerp(g, m, beta1).sign_(), alpha=group["lr"])
            m.lerp_(g, 1 - beta2)
