"""The prediction of a run as it begins, and of what would have fitted when it ran out of memory. No torch.

A run does not depend on it: where nothing can be predicted, the reason is told and the run goes on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property

from trainer.config.plan import RunPlan
from trainer.errors import fault_line
from trainer.hardware import Here, look_here
from trainer.machine import memory_limit
from trainer.planner.cluster import Cluster, cluster_of
from trainer.planner.constants import Constant
from trainer.planner.layout_search import nearest
from trainer.planner.post_mortem import Foreseen, Held, PostMortem, post_mortem
from trainer.planner.predict import Planner, predict
from trainer.planner.prediction import GIB
from trainer.planner.record import prediction_record
from trainer.planner.refusal import too_large
from trainer.planner.space import config_of

LIBRARIES = Constant(
    402 * 2.0**20,
    "resident memory of a CPU rank before its engine is built: VmRSS with trainer.app imported, torch 2.13, 2026-11-29",
)
"""A prediction for CPU ranks counts from there on; a control group counts all of it."""
KILLED = "(the kernel killed it)"
"""Stands for the moment at which a rank ran out of memory, where nobody could look."""

MOST_SIMULATED = 1024
"""Largest number of micro-batches, over all pipeline ranks, whose schedule is simulated event by event as a run begins:
a start must not wait for it. Of more the closed form is taken."""


class Foresight:
    """Predictions of the run that a process begins: it looks at its machine once, and predicts a plan once.

    A plan may be asked for again when more is known, such as the vocabulary when the data are prepared; only another
    plan is predicted anew.
    """

    def __init__(self) -> None:
        self._known: tuple[RunPlan, Foreseen] | None = None

    @cached_property
    def here(self) -> Here:
        """This machine. The first look starts nvidia-smi if there is a GPU."""
        return look_here(os.environ)

    def of(self, plan: RunPlan) -> Foreseen:
        """Return what is predicted of a run on its cluster; never raises."""
        if self._known is None or self._known[0] != plan:
            self._known = plan, self._foresee(plan)
        return self._known[1]

    def refuse_too_large(self, plan: RunPlan) -> None:
        """Refuse a run that surely does not fit. What cannot be predicted, or may fit, is not refused.

        Raises:
            ConfigError: it does not fit, with the nearest layouts that do.
        """
        error = too_large(self.of(plan), plan)
        if error is not None:
            raise error

    def _foresee(self, plan: RunPlan) -> Foreseen:
        cluster = None
        try:
            cluster = cluster_of(config_of(plan), plan.world_size, self.here)
            is_short = plan.pipeline_parallel_size * plan.num_micro_batches <= MOST_SIMULATED
            return Foreseen(predict(plan, cluster, exact=is_short), cluster)
        except Exception as error:
            # A device that the planner does not know trains all the same, and so does a run that finds a fault in it.
            return Foreseen(None, cluster, fault_line(error))


def foresee(plan: RunPlan) -> Foreseen:
    """Return what is predicted of a run on its cluster; never raises."""
    return Foresight().of(plan)


def line_of(foreseen: Foreseen) -> str:
    """Return the line that shows a prediction at the start of a run, or the reason why there is none."""
    found = foreseen.prediction
    if found is None:
        return f"predict nothing: {foreseen.problem}"
    confidence, size = found.confidence, found.device_bytes / GIB
    place = f" (pipeline rank {found.fullest})" if len(found.stages) > 1 else ""
    fits = "" if found.fits else ", which may not fit" if found.may_fit else ", which does not fit"
    return (
        f"predict {found.peak / GIB:,.2f} of {size:,.1f} GiB on the fullest rank{place}{fits} "
        f"(+-{confidence.memory:.0%}), {_time(found.time.total)} a step (+-{confidence.step_time:.0%})"
    )


def record_of(foreseen: Foreseen) -> dict[str, object] | None:
    """Return the entry of plan.json."""
    return None if foreseen.prediction is None else prediction_record(foreseen.prediction)


def explain(plan: RunPlan, rank: int, moment: str, held: Held | None, is_on_host: bool = False) -> PostMortem:
    """Return the account of a rank that ran out of memory: see `post_mortem`."""
    foreseen, limit = foresee(plan), None
    limited = memory_limit() if held is None else None
    if limited is not None and foreseen.prediction is not None and foreseen.cluster is not None:
        limit = limited.limit_bytes // min(plan.world_size, foreseen.prediction.ranks_per_node)
        if foreseen.cluster.is_cpu:
            limit = max(0, limit - round(LIBRARIES.value))
    return post_mortem(plan, rank, moment, held, foreseen, cheapest_fit, limit, is_on_host)


def cheapest_fit(plan: RunPlan, cluster: Cluster) -> tuple[str, ...]:
    """Return the overrides of the smallest change with which a run fits on as many devices; none if there is none."""
    found = nearest(Planner(cluster), plan, [plan.world_size], count=1)
    return found[0].words_after(config_of(plan)) if found else ()


def account_of_killed(plan: RunPlan, rank: int) -> tuple[Sequence[str], Sequence[str]]:
    """Return what a rank that the kernel killed for its memory was predicted to need, and hints what would fit."""
    try:
        found = explain(plan, rank, KILLED, None)
    except Exception as error:
        return (f"nothing is predicted: {fault_line(error)}",), ()
    return found.lines, found.hints


def _time(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"
