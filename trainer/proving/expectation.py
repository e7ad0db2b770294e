"""The oracle's numbers of a scaled run, in fp64, and how far plain fp32, or half precision, is from them by itself.

A tolerance is some times the oracle's own rounding error, and never less than a constant: so it fits every model, those
whose gradients are small differences of large terms too (norms of queries and keys), without being loose for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from trainer.config.schema import Dtype, StepRule, TridentConfig
from trainer.oracle.reference import Batch, ReferenceRun, counted, loss_sum, train_reference
from trainer.oracle.reference_optimizers import ReferenceOptimizer
from trainer.oracle.reference_parts import frozen_names, rate_factors
from trainer.proving.proof_batches import GlobalBatch, global_batches
from trainer.proving.proof_weights import drawn_weights
from trainer.proving.rank_outcome import plan_of_trial
from trainer.proving.scaled_run import stepped_by

_TIMES = 10.0
"""Tolerance / own rounding error of the oracle: sums in another order, over more ranks."""
_TIMES_HALF = 4.0
"""The same in half precision, where libraries also round at other places."""
_LARGEST = 1e-3
"""Largest tolerance in fp32. A gradient that is counted twice, left out or divided by a wrong number is off by 1e-1."""
_SIGNS = 0.3
"""Smallest tolerance of changes by Lion, which steps by signs, those of rounding errors too. Gradients are compared as
always."""
_SMALL = 1e-3
"""Share of the whole gradient's norm below which a tensor's own gradient is judged by that share."""


@dataclass(frozen=True)
class Tolerance:
    """Smallest tolerances, relative."""

    loss: float
    grad_norm: float
    gradient: float
    change: float


_LEAST = {
    # fp32 has 6e-8 a rounding; sums over a few hundred terms in another order differ by a few 1e-7.
    Dtype.fp32: Tolerance(loss=1e-5, grad_norm=1e-5, gradient=2e-6, change=2e-5),
    # bf16 has 4e-3 a rounding, fp16 5e-4. AdamW makes steps as large of small gradients as of large ones.
    Dtype.bf16: Tolerance(loss=1e-3, grad_norm=5e-3, gradient=2e-2, change=0.4),
    Dtype.fp16: Tolerance(loss=1e-4, grad_norm=1e-3, gradient=3e-3, change=0.2),
}


@dataclass(frozen=True)
class Compared:
    """Numbers of a run that are compared, each with the size that its error is relative to."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    gradients: Mapping[str, torch.Tensor]
    """Gradients of step 1, before clipping."""
    changes: Mapping[str, torch.Tensor]
    """Changes of the trained weights over all steps."""
    averages: Mapping[str, torch.Tensor]
    """The same of their averages; empty if none are kept."""


@dataclass(frozen=True)
class Expectation:
    """The oracle's numbers of a scaled run, and the tolerances of each."""

    exact: Compared
    begun: Mapping[str, torch.Tensor]
    """Weights before step 1."""
    frozen: frozenset[str]
    clip: float
    """Factor of the first gradients by clipping."""
    loss_tolerance: Mapping[Dtype, float]
    norm_tolerance: Mapping[Dtype, float]
    gradient_tolerance: Mapping[tuple[Dtype, str], float]
    change_tolerance: Mapping[tuple[Dtype, str], float]

    def gradient_size(self, name: str) -> float:
        """Return the norm that the error of a gradient is relative to."""
        whole = self.exact.grad_norms[0]
        return max(float(self.exact.gradients[name].norm()), _SMALL * whole)

    def change_size(self, name: str) -> float:
        """Return the norm that the error of a weight's change is relative to."""
        largest = max(_rms(change) for change in self.exact.changes.values())
        own = self.exact.changes[name]
        return max(float(own.norm()), _SMALL * largest * math.sqrt(own.numel()))


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.norm()) / math.sqrt(tensor.numel())


def settled_optimizer(config: TridentConfig) -> TridentConfig:
    """Return a scaled run with an optimizer whose steps can be compared; see `stepped_by`. On one process."""
    weights, batch = drawn_weights(plan_of_trial(config)), _batches(config, 1)[0]
    frozen = frozen_names(weights, config.train.frozen, config.model)
    _, gradients = _first_gradients(config, weights, batch, torch.float32, frozen)
    norm = _norm(gradients)
    elements = sum(one.numel() for one in gradients.values())
    return replace(config, optimizer=stepped_by(config.optimizer, norm, elements))


def _batches(config: TridentConfig, steps: int) -> list[list[list[torch.Tensor]]]:
    found: Sequence[GlobalBatch] = global_batches(config, plan_of_trial(config).model.vocab_size, steps)
    return [one.apart() for one in found]


def _norm(gradients: Mapping[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(one.double().pow(2).sum()) for one in gradients.values()))


def _first_gradients(
    config: TridentConfig,
    weights: Mapping[str, torch.Tensor],
    batches: Sequence[Batch],
    dtype: torch.dtype,
    frozen: tuple[str, ...],
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradients of a global batch, computed in a number format of fp32 weights."""
    leaves = {name: one.clone().requires_grad_(name not in frozen) for name, one in weights.items()}
    number, total = sum(map(counted, batches)), 0.0
    for batch in batches:
        loss = loss_sum(config.model, {name: leaf.to(dtype) for name, leaf in leaves.items()}, batch) / number
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total, {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def expectation_of(
    config: TridentConfig, steps: int, dtypes: Sequence[Dtype] = (Dtype.fp32,), only: str | None = None
) -> Expectation:
    """Train the oracle on a scaled run, twice: in fp64, and in fp32 to see how far rounding alone leads.

    Args:
        config: a scaled run, its optimizer settled; its layout and precision do not matter.
        steps: number of steps.
        dtypes: number formats that tolerances are wanted for.
        only: see `drawn_weights`.
    """
    weights, batches = drawn_weights(plan_of_trial(config), only), _batches(config, steps)
    frozen = frozen_names(weights, config.train.frozen, config.model)
    exact, rough = (_trained(config, weights, batches, frozen, wide) for wide in (True, False))
    numbers = [_compared(one, weights, frozen) for one in (exact, rough)]
    clip = config.optimizer.grad_clip
    found = Expectation(
        numbers[0],
        weights,
        frozenset(frozen),
        min(1.0, clip / (exact.grad_norms[0] + 1e-6)) if clip else 1.0,
        {},
        {},
        {},
        {},
    )
    for dtype in dtypes:
        found = _with_tolerances(found, numbers[1], dtype, config.optimizer.kind is StepRule.lion)
    for dtype in dtypes:
        if dtype is not Dtype.fp32:
            kind = torch.bfloat16 if dtype is Dtype.bf16 else torch.float16
            found = _with_half(found, _trained_in_half(config, weights, batches, frozen, kind), dtype)
    return found


def _trained(
    config: TridentConfig,
    weights: Mapping[str, torch.Tensor],
    batches: Sequence[Sequence[Batch]],
    frozen: tuple[str, ...],
    wide: bool,
) -> ReferenceRun:
    rates, decays = rate_factors(weights, config.optimizer, config.model)
    return train_reference(
        config.model,
        {name: one.double() if wide else one for name, one in weights.items()},
        batches,
        config.optimizer,
        frozen=frozen,
        factor=rates.__getitem__,
        decay_factor=decays.__getitem__,
    )


def _compared(run: ReferenceRun, weights: Mapping[str, torch.Tensor], frozen: Sequence[str]) -> Compared:
    trained = [name for name in weights if name not in frozen]
    return Compared(
        run.losses,
        run.grad_norms,
        {name: run.first_gradients[name].double() for name in trained},
        {name: run.weights[name].double() - weights[name].double() for name in trained},
        {name: run.average[name].double() - weights[name].double() for name in trained if run.average},
    )


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference of numbers; infinite if one is not finite."""
    errors = [abs(a - b) / max(abs(b), 1e-30) for a, b in zip(found, expected, strict=True)]
    return max(error if math.isfinite(error) else math.inf for error in errors)


def error(found: torch.Tensor, expected: torch.Tensor, size: float) -> float:
    """Return the norm of a difference over a size; infinite if an element is not finite."""
    value = float((found.double() - expected).norm()) / max(size, 1e-30)
    return value if math.isfinite(value) else math.inf


def _with_tolerances(found: Expectation, rough: Compared, dtype: Dtype, by_signs: bool) -> Expectation:
    least, exact, most = _LEAST[dtype], found.exact, max(_LARGEST, 10 * _LEAST[dtype].gradient)

    def wide(least: float, own: float) -> float:
        return max(least, min(_TIMES * own, most))

    gradients = {
        (dtype, name): wide(
            least.gradient, error(rough.gradients[name], exact.gradients[name], found.gradient_size(name))
        )
        for name in exact.gradients
    }
    changes = {}
    for name, change in exact.changes.items():
        own = error(rough.changes[name], change, found.change_size(name))
        changes[dtype, name] = max(_SIGNS, _TIMES * own) if by_signs else wide(least.change, own)
    return replace(
        found,
        loss_tolerance={**found.loss_tolerance, dtype: wide(least.loss, relative(rough.losses, exact.losses))},
        norm_tolerance={
            **found.norm_tolerance,
            dtype: wide(least.grad_norm, relative(rough.grad_norms, exact.grad_norms)),
        },
        gradient_tolerance={**found.gradient_tolerance, **gradients},
        change_tolerance={**found.change_tolerance, **changes},
    )


def _with_half(found: Expectation, half: Compared, dtype: Dtype) -> Expectation:
    """Return tolerances that allow for what a plain process is off in half precision."""
    exact = found.exact
    gradients, changes = dict(found.gradient_tolerance), dict(found.change_tolerance)
    for name, one in half.gradients.items():
        own = _TIMES_HALF * error(one, exact.gradients[name], found.gradient_size(name))
        gradients[dtype, name] = max(gradients[dtype, name], own)
    for name, one in half.changes.items():
        own = _TIMES_HALF * error(one, exact.changes[name], found.change_size(name))
        changes[dtype, name] = max(changes[dtype, name], own)
    loss, norm = (
        _TIMES_HALF * relative(*both) for both in ((half.losses, exact.losses), (half.grad_norms, exact.grad_norms))
    )
    return replace(
        found,
        loss_tolerance={**found.loss_tolerance, dtype: max(found.loss_tolerance[dtype], loss)},
        norm_tolerance={**found.norm_tolerance, dtype: max(found.norm_tolerance[dtype], norm)},
        gradient_tolerance=gradients,
        change_tolerance=changes,
    )


def _trained_in_half(
    config: TridentConfig,
    weights: Mapping[str, torch.Tensor],
    batches: Sequence[Sequence[Batch]],
    frozen: tuple[str, ...],
    dtype: torch.dtype,
) -> Compared:
    """Train the oracle's model with forward and backward in half precision, and fp32 weights."""
    optimizer = config.optimizer
    rates, decays = rate_factors(weights, optimizer, config.model)
    stepped = ReferenceOptimizer(optimizer, rates.__getitem__, decays.__getitem__)
    held = {name: one.clone() for name, one in weights.items()}
    losses, norms, first = [], [], dict[str, torch.Tensor]()
    for step in batches:
        loss, gradients = _first_gradients(config, held, step, dtype, frozen)
        norm = _norm(gradients)
        first = first or {name: one.double() for name, one in gradients.items()}
        factor = min(1.0, optimizer.grad_clip / (norm + 1e-6)) if optimizer.grad_clip else 1.0
        stepped.step(held, {name: factor * one for name, one in gradients.items()}, optimizer.lr)
        losses.append(loss)
        norms.append(norm)
    changes = {name: held[name].double() - weights[name].double() for name in first}
    return Compared(tuple(losses), tuple(norms), first, changes, {})
