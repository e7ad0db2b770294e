"""Muon for the matrices of the blocks, AdamW for everything else, in one optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.config.schema import OptimizerConfig
from trainer.engine.deepspeed_surface import GROUP
from trainer.engine.orthogonal import muon_update
from trainer.engine.sharding import Piece
from trainer.engine.whole_matrices import Matrix, Run, WholeMatrices, matrix_of, runs_of
from trainer.spec.stepping import StepRule
from trainer.topology.groups import ParallelGroups

Stepped = tuple[torch.Tensor, Sequence[nn.Parameter]]
"""A tensor that an optimizer steps, and the parameters that all replicas together hold in such tensors, in order."""


@dataclass(frozen=True)
class _Held:
    """A rank's run of a matrix, in a tensor that is stepped."""

    matrix: Matrix
    offset: int
    numel: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the run's elements of a tensor of the shape of the one that is stepped, a view."""
        return tensor.view(-1).narrow(0, self.offset, self.numel)


class MatrixSteps(torch.optim.AdamW):
    """Muon (K. Jordan and others, 2024) with the weight decay and the scale of Moonlight (arXiv 2502.16982).

    m = momentum m + (1 - momentum) g; u = momentum m + (1 - momentum) g (Nesterov); w = (1 - lr decay) w - lr s O(u),
    with O(u) the orthogonalised matrix and s its scale (`engine.orthogonal`). m is sharded as the master weights are;
    u is made whole for O, whatever shards it (`engine.whole_matrices`), so that a layout changes no step. Groups of
    another rule are stepped by torch's AdamW.

    Args:
        groups: parameters with their `weight_decay` and their `GROUP`.
        config: numbers of the optimizer.
    """

    def __init__(self, groups: list[dict[str, object]], config: OptimizerConfig) -> None:
        betas = (config.beta1, config.beta2)
        super().__init__(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
        self._momentum = config.momentum
        self._held: Mapping[torch.Tensor, Sequence[_Held]] = {}
        self._exchanges: dict[tuple[int, ...], WholeMatrices] = {}

    def attach(self, stepped: Iterable[Stepped], pieces: Iterable[Piece], groups: ParallelGroups) -> None:
        """Learn which runs of which matrices lie in the tensors that are stepped. Collective over the replicas.

        Args:
            stepped: all that Muon steps on this stage.
            pieces: this rank's pieces of the parameters.
            groups: this rank's place.
        """
        own = {piece.parameter: piece for piece in pieces}
        self._held = {tensor: _held(parameters, own, groups) for tensor, parameters in stepped}
        self._groups = groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient, which is used up. Collective over replicas and tensor ranks."""
        everything = self.param_groups
        self.param_groups = [group for group in everything if group[GROUP].rule is not StepRule.muon]
        try:
            super().step()
        finally:
            self.param_groups = everything
        of_matrices = [group for group in everything if group[GROUP].rule is StepRule.muon]
        due = [(one, group) for group in of_matrices for one in group["params"] if one.grad is not None]
        if due:
            self._step_matrices(due)

    def _step_matrices(self, due: Sequence[tuple[torch.Tensor, Mapping[str, Any]]]) -> None:
        runs = []
        for weight, _ in due:
            update = self._update(weight)
            runs += [held.of(update) for held in self._held[weight]]
        key = tuple(id(weight) for weight, _ in due)
        if key not in self._exchanges:
            matrices = [held.matrix for weight, _ in due for held in self._held[weight]]
            self._exchanges[key] = WholeMatrices(matrices, self._groups)
        changed = iter(self._exchanges[key].change(runs, muon_update))
        for weight, group in due:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            for held in self._held[weight]:
                held.of(weight.data).sub_(next(changed), alpha=group["lr"])

    def _update(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the update before it is orthogonalised, in place of the gradient."""
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None, "only what has a gradient is stepped"
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight)
        state["step"] += 1
        moment = state["exp_avg"].lerp_(gradient, 1 - self._momentum)
        return gradient.lerp_(moment, self._momentum)


def _held(
    parameters: Sequence[nn.Parameter], pieces: Mapping[nn.Parameter, Piece], groups: ParallelGroups
) -> Sequence[_Held]:
    own = [pieces.get(parameter) for parameter in parameters]
    if all(piece is not None and piece.is_on_every_replica for piece in own):
        runs: list[tuple[Run, ...]] = [((piece.start, piece.numel),) for piece in own if piece is not None]
    else:
        runs = runs_of([None if piece is None else (piece.start, piece.numel) for piece in own], groups.gradients)
    return [
        _Held(matrix_of(parameter, run), *((0, 0) if piece is None else (piece.offset, piece.numel)))
        for parameter, run, piece in zip(parameters, runs, own, strict=True)
    ]
