"""Rules about recorded steps, of `runtime.profile` and `logging.timeline_step`: they are trained, and ranks exist."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.rules_common import Case, Rule
from trainer.config.rules_ranges import CLOSED
from trainer.config.schema import PROFILE_AFTER_STEPS, RuntimeConfig

MOST_STEPS = int(CLOSED["runtime.profile_steps"][1])


def settings(case: Case) -> Iterator[str]:
    """No setting of the profiler is given while it is off."""
    runtime, default = case.config.runtime, RuntimeConfig()
    if runtime.profile:
        return
    # Values out of their range are reported by `minima` and `real_ranges`.
    in_range = {
        "profile_first_step": runtime.profile_first_step is not None and runtime.profile_first_step >= 1,
        "profile_steps": 1 <= runtime.profile_steps <= MOST_STEPS,
        "profile_ranks": True,
    }
    for key, is_legal in in_range.items():
        if is_legal and getattr(runtime, key) != getattr(default, key):
            yield f"runtime.{key} has no effect with runtime.profile=false; use runtime.profile=true, or leave it out"


def steps(case: Case) -> Iterator[str]:
    """The recorded steps are steps of the run."""
    runtime, last = case.config.runtime, case.steps
    first = PROFILE_AFTER_STEPS + 1 if runtime.profile_first_step is None else runtime.profile_first_step
    if not runtime.profile or first < 1 or not 1 <= runtime.profile_steps <= MOST_STEPS or last < 1:
        return
    end = first + runtime.profile_steps - 1
    if end > last:
        yield (
            f"runtime.profile=true records steps {first} to {end} and needs train.steps of at least {end}, but it is "
            f"{last}; use for example runtime.profile_first_step=1 runtime.profile_steps={min(last, 3)}"
        )


def timeline(case: Case) -> Iterator[str]:
    """The step whose timeline is asked for is a step of the run."""
    step, last = case.config.logging.timeline_step, case.steps
    if step is not None and step > last >= 1:
        yield (
            f"logging.timeline_step ({step}) must be a step of the run, but train.steps is {last}; use at most {last}, "
            "0 for none, or leave it out"
        )


def ranks(case: Case) -> Iterator[str]:
    """The recording ranks exist."""
    layout, chosen = case.config.layout, case.config.runtime.profile_ranks
    size = layout.pipeline_parallel_size * layout.tensor_parallel_size * case.dp
    if not case.config.runtime.profile:
        return
    wrong = [rank for rank in chosen if not 0 <= rank < size]
    if wrong:
        yield f"runtime.profile_ranks must hold ranks of the run, 0 to {size - 1}, but holds {wrong[0]}"
    if len(set(chosen)) < len(chosen):
        yield f"runtime.profile_ranks must hold each rank once, but is {list(chosen)}"


RULES: tuple[Rule, ...] = (settings, steps, timeline)
ARITHMETIC: tuple[Rule, ...] = (ranks,)
"""Rules that are asked only when every size is positive."""
