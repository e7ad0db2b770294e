"""Cut the layers into stages by cost. Pure; no torch.

Embedding and head count: a head over a large vocabulary costs as much as several blocks, an embedding almost
nothing. Every stage holds at least one block, since a stage without parameters hangs DeepSpeed (#5792, #5078).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from trainer.config.plan import RunPlan
from trainer.config.schema import RecomputeKind
from trainer.model.accounting import layer_forward_flops, layer_parameter_counts
from trainer.model.layers import layer_names


@dataclass(frozen=True)
class Stage:
    """Consecutive layers; `rank_index` is the pipeline rank that owns them."""

    index: int
    rank_index: int
    layers: tuple[str, ...]
    first_layer: int
    parameters: int
    """Unpadded, over all tensor-parallel ranks."""
    cost_share: float
    """Part of the model's work in this stage, 0 to 1."""


def partition_by_cost(costs: Sequence[float], is_block: Sequence[bool], num_stages: int) -> tuple[int, ...]:
    """Return bounds `[0, ..., len(costs)]` of stages such that the dearest stage is as cheap as possible.

    Of those, the ones with the smallest sum of squared stage costs, so that the rest is balanced as well.

    Raises:
        ValueError: there are fewer blocks than stages.
    """
    if sum(is_block) < num_stages:
        raise ValueError(f"number of blocks must be at least {num_stages} (stages), but is {sum(is_block)}")
    stops = range(len(costs) + 1)
    prefix = (0.0, *accumulate(costs))
    blocks = (0, *accumulate(map(int, is_block)))
    # For each stop, every (start, cost) of a stage [start, stop) that holds a block.
    last_stages = [
        [(start, prefix[stop] - prefix[start]) for start in range(stop) if blocks[stop] > blocks[start]]
        for stop in stops
    ]
    # After i rounds: the dearest stage of the best cut of layers [0, stop) into i stages.
    dearest = [0.0] + [math.inf] * len(costs)
    for _ in range(num_stages):
        dearest = [min((max(dearest[a], cost) for a, cost in last_stages[stop]), default=math.inf) for stop in stops]
    # Only with the limit known can squares decide: a part of the best cut need not have the cheapest dearest stage.
    limit = dearest[-1]
    flattest: list[tuple[float, tuple[int, ...]]] = [(0.0, (0,))] + [(math.inf, ())] * len(costs)
    for _ in range(num_stages):
        flattest = [
            min(
                ((flattest[a][0] + cost**2, (*flattest[a][1], stop)) for a, cost in last_stages[stop] if cost <= limit),
                default=(math.inf, ()),
            )
            for stop in stops
        ]
    return flattest[-1][1]


def layer_costs(plan: RunPlan) -> tuple[float, ...]:
    """Return the work of every layer for one token: forward, twice that for backward, and what is recomputed."""
    forward = layer_forward_flops(plan.model)
    block_factor = 4.0 if plan.model.recompute is RecomputeKind.full else 3.0
    names = layer_names(plan.model)
    return tuple(
        flops * (block_factor if name.startswith("blocks.") else 3.0)
        for name, flops in zip(names, forward, strict=True)
    )


def _explicit_bounds(plan: RunPlan, names: Sequence[str]) -> tuple[int, ...]:
    first_block = names.index("blocks.0")
    inner = (first_block + block for block in plan.config.layout.stage_boundaries)
    return (0, *inner, len(names))


def stage_bounds(plan: RunPlan) -> tuple[int, ...]:
    """Return layer bounds of all stages, as many as the schedule has."""
    if plan.config.layout.stage_boundaries:
        return _explicit_bounds(plan, layer_names(plan.model))
    return balanced_bounds(plan, layer_costs(plan))


def balanced_bounds(plan: RunPlan, costs: Sequence[float]) -> tuple[int, ...]:
    """Return layer bounds of stages that are balanced by `costs`, one a layer."""
    num_stages = plan.schedule.stages(plan.pipeline_parallel_size)
    return partition_by_cost(costs, [name.startswith("blocks.") for name in layer_names(plan.model)], num_stages)


def boundaries(plan: RunPlan, bounds: Sequence[int]) -> list[int]:
    """Return layer bounds as `layout.stage_boundaries`: the first block of every stage but the first."""
    first_block = layer_names(plan.model).index("blocks.0")
    return [bound - first_block for bound in bounds[1:-1]]


def stages(plan: RunPlan) -> tuple[Stage, ...]:
    """Describe every stage, in order, for the plan that is shown before a run starts."""
    names, bounds, costs = layer_names(plan.model), stage_bounds(plan), layer_costs(plan)
    counts = layer_parameter_counts(plan.model)
    total = sum(costs)
    return tuple(
        Stage(
            index=index,
            rank_index=plan.schedule.owner(index, plan.pipeline_parallel_size),
            layers=names[start:stop],
            first_layer=start,
            parameters=sum(counts[start:stop]),
            cost_share=sum(costs[start:stop]) / total,
        )
        for index, (start, stop) in enumerate(pairwise(bounds))
    )
