"""A trial held against the oracle: what differs, by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from trainer.engine.face import Fragment
from trainer.kernels.attention_backend import DTYPES
from trainer.oracle.reference_optimizers import rule_of
from trainer.proving.expectation import Expectation, error, relative
from trainer.proving.proof_trials import Trial
from trainer.proving.rank_outcome import RankOutcome
from trainer.proving.whole_tensors import NotWhole, differing_copies, from_fragments, weights_of
from trainer.spec.stepping import EMA, WEIGHT

FIRST_LOSS = "the loss of step 1"


@dataclass(frozen=True)
class Finding:
    """Something that differs from the oracle, or between ranks."""

    what: str
    """The quantity, such as "the gradient"."""
    tensor: str = ""
    """Global name of the tensor; empty for a number of the whole model."""
    error: float = 0.0
    """Relative difference; 0 where it is none of size."""
    tolerance: float = 0.0
    stage: int | None = None
    """Pipeline rank that holds the tensor, where there are several."""

    @property
    def text(self) -> str:
        """The finding as a phrase."""
        of = f" of {self.tensor}" if self.tensor else ""
        where = "" if self.stage is None else f" (stage {self.stage})"
        size = f" is off by {self.error:.1e} of its size, {self.tolerance:.0e} is allowed" if self.tolerance else ""
        return f"{self.what}{of}{where}{size}"


@dataclass(frozen=True)
class Verdict:
    """A trial held against the oracle."""

    trial: Trial
    errors: Mapping[str, float] = field(default_factory=dict)
    """Quantity -> largest relative difference."""
    worst: Mapping[str, str] = field(default_factory=dict)
    """Quantity -> tensor in which it is."""
    findings: tuple[Finding, ...] = ()
    tensors: int = 0
    """Number of tensors whose gradient and change were compared."""
    failure: str = ""
    """Account of ranks that did not end with a result."""
    details: str = ""

    @property
    def agrees(self) -> bool:
        """True if nothing differs."""
        return not self.findings and not self.failure


def judged(trial: Trial, outcomes: Sequence[RankOutcome], expected: Expectation) -> Verdict:
    """Hold what the ranks of a trial saw against the oracle."""
    findings: list[Finding] = []
    first, dtype = outcomes[0], trial.config.precision.dtype
    for one in outcomes[1:]:
        if one.losses != first.losses or one.grad_norms != first.grad_norms:
            findings.append(Finding("ranks report different losses or gradient norms"))
            break
    if any(first.skipped):
        findings.append(Finding("a step was skipped"))
    errors, worst = {}, dict[str, str]()
    for what, found, exact, tolerance in (
        ("loss", first.losses, expected.exact.losses, expected.loss_tolerance[dtype]),
        ("gradient norm", first.grad_norms, expected.exact.grad_norms, expected.norm_tolerance[dtype]),
    ):
        errors[what] = relative(found, exact)
        if errors[what] > tolerance:
            step = next(
                n
                for n, pair in enumerate(zip(found, exact, strict=True), 1)
                if relative(*([x] for x in pair)) > tolerance
            )
            findings.append(Finding(f"the {what} of step {step}", "", errors[what], tolerance))
    stages = _stages(outcomes) if trial.setting.pp > 1 else {}
    for what, values in _tensors(trial, outcomes, expected, findings).items():
        allowed = expected.gradient_tolerance if what == "gradient" else expected.change_tolerance
        for name, value in values.items():
            if value >= errors.get(what, -1.0):
                errors[what], worst[what] = value, name
            if value > allowed[dtype, name]:
                said = "the gradient" if what == "gradient" else f"the change in {len(first.losses)} steps"
                findings.append(Finding(said, name, value, allowed[dtype, name], stages.get(name)))
    findings += [Finding(f"copies on {between} differ, those", name) for name, between in differing_copies(outcomes)]
    findings.sort(key=lambda one: (bool(one.tensor), -one.error))
    return Verdict(trial, errors, worst, tuple(findings), len(expected.exact.gradients))


def _stages(outcomes: Sequence[RankOutcome]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in outcomes:
        for name in one.digests:
            found[name] = min(found.get(name, one.place.stage), one.place.stage)
    return found


def _tensors(
    trial: Trial, outcomes: Sequence[RankOutcome], expected: Expectation, findings: list[Finding]
) -> dict[str, dict[str, float]]:
    """Return quantity -> tensor -> relative difference, and note what cannot be compared."""
    exact, found = expected.exact, dict[str, dict[str, float]]()
    moments = _whole([one for outcome in outcomes for one in outcome.first_moments], findings)
    masters = _whole([f for outcome in outcomes for f in outcome.masters if f.kind == WEIGHT], findings)
    averages = _whole([f for outcome in outcomes for f in outcome.masters if f.kind == EMA], findings)
    optimizer = trial.config.optimizer
    shares = {"adamw": 1 - optimizer.beta1, "lion": 1 - optimizer.beta2, "muon": 1 - optimizer.momentum}
    names = set(exact.gradients)
    if moments is not None and set(moments) != names:
        findings.append(Finding(f"the tensors with a gradient: {_difference(set(moments), names)}"))
    if moments is not None:
        factor = {n: shares[rule_of(optimizer.kind.value, n)] * expected.clip for n in names}
        found["gradient"] = {
            name: error(moments[name] / factor[name], exact.gradients[name], expected.gradient_size(name))
            for name in sorted(names & set(moments))
        }
    if masters is not None:
        begun = expected.begun
        found["change"] = {
            name: error(masters[name].double() - begun[name].double(), exact.changes[name], expected.change_size(name))
            for name in sorted(names & set(masters))
        }
        frozen = [
            n
            for n in sorted(expected.frozen & set(masters))
            if not torch.equal(_in(trial, begun[n]), _in(trial, masters[n]))
        ]
        findings += [Finding("training has changed a frozen tensor, the values", name) for name in frozen]
        read = weights_of(outcomes)
        for name in sorted(set(masters) & set(read)):
            if not torch.equal(_in(trial, masters[name]), read[name]):
                findings.append(Finding("forward reads other weights than the optimizer steps, those", name))
    if averages and exact.averages:
        for name in sorted(names & set(averages)):
            begun_here = expected.begun[name].double()
            value = error(averages[name].double() - begun_here, exact.averages[name], expected.change_size(name))
            found["change"][name] = max(value, found["change"][name])
    return found


def _in(trial: Trial, tensor: torch.Tensor) -> torch.Tensor:
    """Return fp32 values as they are in the number format of the trial."""
    return tensor.to(DTYPES[trial.config.precision.dtype]).float()


def _whole(fragments: Sequence[Fragment], findings: list[Finding]) -> dict[str, torch.Tensor] | None:
    try:
        return from_fragments(fragments)
    except NotWhole as problem:
        findings.append(Finding(str(problem)))
        return None


def _difference(found: set[str], expected: set[str]) -> str:
    missing, extra = sorted(expected - found), sorted(found - expected)
    parts = [f"without {', '.join(missing[:3])}"] * bool(missing) + [f"with {', '.join(extra[:3])}"] * bool(extra)
    return " and ".join(parts)
