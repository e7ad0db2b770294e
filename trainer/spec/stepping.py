"""The tensors that an optimizer steps alike, and what it keeps of each. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from trainer.spec.tensors import TensorSpec

WEIGHT = "weight"
"""Kind of the fp32 master weights."""
EMA = "ema"
"""Kind of the exponential moving average of the weights."""


class StepRule(Enum):
    """Rule by which an optimizer steps a tensor."""

    adamw = "adamw"
    """Decoupled weight decay regularization, arXiv 1711.05101."""
    lion = "lion"
    """Symbolic discovery of optimization algorithms, arXiv 2302.06675."""
    muon = "muon"
    """Momentum whose matrices are orthogonalised (K. Jordan and others, 2024; arXiv 2502.16982)."""


_MOMENTS: Mapping[StepRule, tuple[str, ...]] = {
    StepRule.adamw: ("exp_avg", "exp_avg_sq"),
    StepRule.lion: ("exp_avg",),
    StepRule.muon: ("exp_avg",),
}


def is_hidden_matrix(tensor: TensorSpec) -> bool:
    """Return whether a tensor maps one hidden state to another: a matrix of a block, and no lookup or head."""
    return tensor.is_matrix and tensor.name.startswith("blocks.")


@dataclass(frozen=True)
class StepGroup:
    """Tensors that are stepped alike."""

    rule: StepRule
    decays: bool
    """True if weight decay applies to them."""
    rate: float
    """Factor of the step's learning rate."""
    averages: bool = False
    """True if an average of the weights is kept beside them."""
    decay: float = 1.0
    """Factor of the weight decay."""

    @property
    def moments(self) -> tuple[str, ...]:
        """Kinds of fp32 tensors of a parameter's shape that the optimizer keeps for each parameter."""
        return _MOMENTS[self.rule]

    @property
    def kept(self) -> tuple[str, ...]:
        """Kinds of fp32 tensors of a parameter's shape that are kept besides its master weight."""
        return (*self.moments, EMA) if self.averages else self.moments


@dataclass(frozen=True)
class Stepping:
    """The way in which a run steps the tensors of a model."""

    rule: StepRule = StepRule.adamw
    rates: frozenset[tuple[str, float]] = frozenset()
    """(global name, factor of the learning rate) of the tensors whose factor is not 1."""
    averages: bool = False
    """True if an average of the weights is kept beside them."""
    decays: frozenset[tuple[str, float]] = frozenset()
    """(global name, factor of the weight decay) of the tensors whose factor is not 1."""

    @cached_property
    def _rates(self) -> Mapping[str, float]:
        return dict(self.rates)

    @cached_property
    def _decays(self) -> Mapping[str, float]:
        return dict(self.decays)

    def group(self, tensor: TensorSpec) -> StepGroup:
        """Return the group of a tensor, trained or not."""
        rule = self.rule
        if rule is StepRule.muon and not is_hidden_matrix(tensor):
            rule = StepRule.adamw
        rate, decay = self._rates.get(tensor.name, 1.0), self._decays.get(tensor.name, 1.0)
        return StepGroup(rule, tensor.decays, rate, self.averages, decay)

    def groups(self, tensors: Iterable[TensorSpec]) -> tuple[StepGroup, ...]:
        """Return the groups of some tensors, those that decay first, otherwise in order of appearance."""
        found = dict.fromkeys(self.group(tensor) for tensor in tensors)
        return tuple(sorted(found, key=lambda group: not group.decays))

    def kinds(self, tensor: TensorSpec, is_trained: bool) -> tuple[str, ...]:
        """Return the kinds of fp32 tensors that a run keeps of a tensor: a frozen one has its weight alone."""
        return (WEIGHT, *self.group(tensor).kept) if is_trained else (WEIGHT,)
