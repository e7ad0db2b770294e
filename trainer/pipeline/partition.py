"""Partition the layers into stages by cost. Pure; no torch.

Embedding and head count: a head over a large vocabulary costs as much as several blocks, an embedding almost
nothing. Every stage holds at least one block, since a stage without parameters hangs DeepSpeed (#5792, #5078).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from trainer.config.plan import RunPlan
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Layer, LayerKind


@dataclass(frozen=True)
class Stage:
    """Consecutive layers; `rank_index` is the pipeline rank that owns them."""

    index: int
    rank_index: int
    layers: tuple[Layer, ...]
    parameters: int
    """Number of parameters without padding, over all tensor-parallel ranks."""
    cost_share: float
    """Part of the model's work in this stage, 0 to 1."""


def partition_by_cost(costs: Sequence[float], is_block: Sequence[bool], num_stages: int) -> tuple[int, ...]:
    """Return bounds `[0, ..., len(costs)]` of stages such that the most expensive stage is as cheap as possible.

    Among those, the ones with the smallest sum of squared stage costs, so that the rest is balanced as well.

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
    # After i rounds: the most expensive stage of the best partition of layers [0, stop) into i stages.
    dearest = [0.0] + [math.inf] * len(costs)
    for _ in range(num_stages):
        dearest = [min((max(dearest[a], cost) for a, cost in last_stages[stop]), default=math.inf) for stop in stops]
    # Squares can decide only once the limit is known: a part of the best partition need not be the best for its layers.
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
    """Return the work of every layer for one token: forward, twice that for backward, and the recomputed part."""
    block_factor = 4.0 if plan.execution.recompute is RecomputeKind.full else 3.0
    return tuple(
        layer.forward_flops(plan.execution.seq_length) * (block_factor if layer.kind is LayerKind.block else 3.0)
        for layer in plan.model.layers
    )


def _is_block(plan: RunPlan) -> list[bool]:
    return [layer.kind is LayerKind.block for layer in plan.model.layers]


def _explicit_bounds(plan: RunPlan) -> tuple[int, ...]:
    is_block = _is_block(plan)
    inner = (is_block.index(True) + block for block in plan.stage_boundaries)
    return (0, *inner, len(is_block))


def stage_bounds(plan: RunPlan) -> tuple[int, ...]:
    """Return layer bounds of all stages, as many as the schedule has."""
    if plan.stage_boundaries:
        return _explicit_bounds(plan)
    return balanced_bounds(plan, layer_costs(plan))


def balanced_bounds(plan: RunPlan, costs: Sequence[float]) -> tuple[int, ...]:
    """Return layer bounds of stages that are balanced by `costs`, one for each layer."""
    num_stages = plan.schedule.stages(plan.pipeline_parallel_size)
    return _partition(tuple(costs), tuple(_is_block(plan)), num_stages)


@functools.lru_cache(maxsize=1024)
def _partition(costs: tuple[float, ...], is_block: tuple[bool, ...], num_stages: int) -> tuple[int, ...]:
    # A search of layouts asks for the same partitions over and over.
    return partition_by_cost(costs, is_block, num_stages)


def boundaries(plan: RunPlan, bounds: Sequence[int]) -> list[int]:
    """Return layer bounds as `layout.stage_boundaries`: the first block of every stage but the first."""
    first_block = _is_block(plan).index(True)
    return [bound - first_block for bound in bounds[1:-1]]


def stages(plan: RunPlan) -> tuple[Stage, ...]:
    """Describe every stage, in order, for the plan that is shown before a run starts."""
    layers, bounds, costs = plan.model.layers, stage_bounds(plan), layer_costs(plan)
    total = sum(costs)
    return tuple(
        Stage(
            index=index,
            rank_index=plan.schedule.owner(index, plan.pipeline_parallel_size),
            layers=layers[start:stop],
            parameters=sum(layer.parameter_count for layer in layers[start:stop]),
            cost_share=sum(costs[start:stop]) / total,
        )
        for index, (start, stop) in enumerate(pairwise(bounds))
    )
