"""Seconds that micro-batches take to go through a pipeline, in the order in which a software runs them. No torch.

`planner.timeline` plays the order; `planner.makespan_estimate` is its closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainer.config.plan import RunPlan
from trainer.config.schema import PipelineSchedule
from trainer.config.schema_cluster import Software
from trainer.errors import ConfigError
from trainer.planner.cluster import Cluster
from trainer.planner.makespan_estimate import Messages, estimate_1f1b, estimate_dualpipev, estimate_interleaved
from trainer.planner.orders import Order, interleaved_1f1b, megatron_1f1b, trained_order
from trainer.planner.shares import chunks_of
from trainer.planner.timeline import Costs, makespan

MOST_EVENTS = 1 << 15
"""Passes of micro-batches through stages up to which a schedule is simulated: beyond, start and end count little."""


@dataclass(frozen=True)
class Passes:
    """Seconds of one micro-batch in each stage."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    """Recomputation included."""
    owners: tuple[int, ...]
    """Pipeline rank that holds each stage."""


def order_of(plan: RunPlan, cluster: Cluster) -> Order:
    """Return the order in which the software of a cluster runs a plan.

    Raises:
        ConfigError: Megatron's interleaving cannot run so many micro-batches.
    """
    pp, count, chunks = plan.pipeline_parallel_size, plan.num_micro_batches, chunks_of(plan, cluster)
    if chunks > 1:
        _check(pp, count)
        return interleaved_1f1b(pp, count, chunks)
    if cluster.software is Software.megatron:
        return megatron_1f1b(pp, count)
    return trained_order(plan.schedule.kind, pp, count)


def is_simulated(plan: RunPlan) -> bool:
    """Return whether a plan has so few passes that its schedule is simulated; otherwise its closed form is taken."""
    return plan.num_micro_batches * plan.pipeline_parallel_size <= MOST_EVENTS


def pipeline_seconds(plan: RunPlan, cluster: Cluster, passes: Passes, message: float, exact: bool) -> float:
    """Return the seconds from the first pass to the last one.

    Args:
        plan: numbers of the run.
        cluster: machines and software.
        passes: seconds of each stage.
        message: seconds of a message between two ranks.
        exact: play the order; otherwise its closed form.

    Raises:
        ConfigError: Megatron's interleaving cannot run so many micro-batches.
    """
    pp, count = plan.pipeline_parallel_size, plan.num_micro_batches
    if pp == 1:
        return count * (passes.forward[0] + passes.backward[0])
    costs = Costs(passes.forward, passes.backward, stage_messages(passes.owners, message))
    if exact:
        return makespan(order_of(plan, cluster), costs)
    if chunks_of(plan, cluster) > 1:
        _check(pp, count)
        return estimate_interleaved(costs, pp, count)
    if plan.schedule.kind is PipelineSchedule.dualpipev:
        return estimate_dualpipev(costs, count)
    is_megatron = cluster.software is Software.megatron
    return estimate_1f1b(costs, count, Messages.together if is_megatron else Messages.one_by_one)


def stage_messages(owners: Sequence[int], message: float) -> list[float]:
    """Return the seconds behind each stage: none where the same rank holds the next one."""
    return [0.0 if one == following else message for one, following in pairwise(owners)]


def _check(pp: int, count: int) -> None:
    if count % pp:
        raise ConfigError(
            f"batch.global_batch_size must give each replica a multiple of {pp} micro-batches "
            f"(layout.pipeline_parallel_size) with cluster.virtual_stages above 1, but gives {count}"
        )
