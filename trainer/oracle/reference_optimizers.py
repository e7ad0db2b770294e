"""The optimizers of the oracle, on whole tensors by name, written from their papers. fp32.

Imports nothing of the code that it judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from trainer.config.schema import OptimizerConfig

Tensors = Mapping[str, torch.Tensor]
Factor = Callable[[str], float]
"""Global name -> factor of the learning rate."""


def constant_factor(name: str) -> float:
    """Return 1: every tensor has the same rate."""
    return 1.0


def rule_of(kind: str, name: str) -> str:
    """Return the rule for a tensor: Muon is for the matrices of blocks alone."""
    is_matrix = name.startswith("blocks.") and name.endswith(".weight") and "norm" not in name
    return kind if kind != "muon" or is_matrix else "adamw"


_FUSED = {"gate_up": 2}
"""Name of a layer -> equal matrices that lie below each other in its weight."""


class ReferenceOptimizer:
    """Steps tensors one by one, and keeps what each needs from step to step.

    Args:
        config: names the rule and its numbers.
        factor: factor of the learning rate of each tensor.
        decay: factor of the weight decay of each tensor.
    """

    def __init__(
        self, config: OptimizerConfig, factor: Factor = constant_factor, decay: Factor = constant_factor
    ) -> None:
        self._config = config
        self._factor, self._decay = factor, decay
        self._first: dict[str, torch.Tensor] = {}
        self._second: dict[str, torch.Tensor] = {}
        self._steps = 0

    def step(self, weights: Tensors, gradients: Tensors, rate: float) -> None:
        """Change the weights, given clipped gradients and the step's learning rate."""
        self._steps += 1
        rules = {"adamw": self._adamw, "lion": self._lion, "muon": self._muon}
        with torch.no_grad():
            for name, gradient in gradients.items():
                weight, own = weights[name], rate * self._factor(name)
                if weight.ndim >= 2:
                    weight *= 1 - own * self._config.weight_decay * self._decay(name)
                rules[rule_of(self._config.kind.value, name)](name, weight, gradient, own)

    def _adamw(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Step as arXiv 1711.05101, Algorithm 2, does; the decay is done."""
        config, step = self._config, self._steps
        first = self._first.setdefault(name, torch.zeros_like(weight))
        second = self._second.setdefault(name, torch.zeros_like(weight))
        first.copy_(config.beta1 * first + (1 - config.beta1) * gradient)
        second.copy_(config.beta2 * second + (1 - config.beta2) * gradient * gradient)
        root = torch.sqrt(second / (1 - config.beta2**step)) + config.eps
        weight -= rate * (first / (1 - config.beta1**step)) / root

    def _lion(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Step as arXiv 2302.06675, Algorithm 2, does; the decay is done."""
        config = self._config
        first = self._first.setdefault(name, torch.zeros_like(weight))
        weight -= rate * torch.sign(config.beta1 * first + (1 - config.beta1) * gradient)
        first.copy_(config.beta2 * first + (1 - config.beta2) * gradient)

    def _muon(self, name: str, weight: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Step as arXiv 2502.16982, equations 1 to 4, does, with Nesterov's momentum; the decay is done.

        Queries, keys and values are matrices of their own, and so are gate and up.
        """
        beta = self._config.momentum
        first = self._first.setdefault(name, torch.zeros_like(weight))
        first.copy_(beta * first + (1 - beta) * gradient)
        update = beta * first + (1 - beta) * gradient
        layer = name.split(".")[-2]
        rows = [len(weight) // _FUSED.get(layer, 1)] * _FUSED.get(layer, 1)
        if layer == "qkv":
            columns = weight.shape[1]
            rest = (len(weight) - columns) // 2
            rows = [columns, rest, rest]
        for part, own in zip(torch.split(weight, rows), torch.split(update, rows), strict=True):
            part -= rate * 0.2 * max(part.shape) ** 0.5 * _newton_schulz(own)


def _newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """Return the polar factor of a matrix as five steps of Muon's quintic come near it (K. Jordan and others, 2024)."""
    x: torch.Tensor = matrix / (matrix.pow(2).sum().sqrt() + 1e-7)
    if len(matrix) > matrix.shape[1]:
        return _newton_schulz(matrix.T).T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x
