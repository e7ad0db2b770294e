"""The learning rate and the optimizer of a foreign run, as keys here."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.other_names import value_here
from trainer.config.schema import ScheduleKind, StepRule
from trainer.migration.draft import Draft, Why

_KIND = "schedule.kind"


@dataclass(frozen=True)
class Curve:
    """A learning-rate schedule there."""

    style: str
    """Its name there, small letters."""
    warmup_steps: int
    end: int | None
    """Step at which the minimum is reached; None: the last of the run."""
    lr: float
    min_lr: float
    names: tuple[str, ...]
    """Settings that say the style."""
    warmup_names: tuple[str, ...] = ()
    end_names: tuple[str, ...] = ()
    min_names: tuple[str, ...] = ("min_lr",)
    decay: int | None = None
    """Steps of the decay at the end (warm-up, stable, decay)."""
    decay_style: str = "linear"


def put_curve(draft: Draft, curve: Curve, steps: int) -> None:
    """Set the schedule.

    Args:
        draft: the experiment.
        curve: the schedule there.
        steps: steps of the run.
    """
    kind = value_here(_KIND, curve.style) or curve.style
    if kind not in [member.value for member in ScheduleKind]:
        for name in curve.names:
            draft.drop(
                name, Why.unsupported, "schedules are constant, cosine, linear and wsd; cosine is written instead"
            )
        kind = ScheduleKind.cosine.value
        draft.put(_KIND, kind, *curve.names, note=f"there it is {curve.style}, which is not available")
    else:
        draft.put(_KIND, kind, *curve.names)
    draft.put("schedule.warmup_steps", curve.warmup_steps, *curve.warmup_names)
    if kind == ScheduleKind.constant.value:
        draft.used.update(name for name in (*curve.end_names, *curve.min_names) if name in draft.settings)
        return
    ratio = curve.min_lr / curve.lr if curve.lr else 0.0
    draft.put("schedule.min_lr_ratio", float(f"{ratio:.10g}"), *curve.min_names, note="")
    if kind == ScheduleKind.wsd.value:
        note = "" if curve.decay_style == "linear" else f"along a line; there it is {curve.decay_style}"
        if curve.end is not None and curve.end != steps:
            note = f"{note + '; ' if note else ''}it ends with the run; there it ends at step {curve.end}"
        draft.put("schedule.decay_steps", curve.decay or max(1, steps // 10), *curve.end_names, note=note)
    else:
        draft.put("schedule.decay_steps", curve.end or steps, *curve.end_names)


def put_optimizer(draft: Draft, name: str, default: str = "adam") -> None:
    """Set the kind of optimizer that a setting names."""
    setting = draft.find(name)
    said = str(setting.value).lower() if setting else default
    here = value_here("optimizer.kind", said) or said
    if here in [member.value for member in StepRule]:
        draft.put("optimizer.kind", here, name)
    else:
        draft.put("optimizer.kind", StepRule.adamw.value, name, note=f"there it is {said}, which is not available")
        draft.drop(name, Why.unsupported, "the optimizers are adamw, lion and muon; adamw is written instead")
