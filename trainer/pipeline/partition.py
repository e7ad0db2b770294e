"""Partition the layers into stages by cost. Pure; no torch.

Embedding and head count: a head over a large vocabulary costs as much as several blocks, an embedding almost
nothing. Every stage holds at least one block, since a stage without parameters hangs DeepSpeed (#5792, #5078).
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import add

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

    Among those, the ones with the smallest sum of squared stage costs, so that the rest is balanced as well; of equal
    sums the smallest bounds.

    Args:
        costs: of each layer, none of them negative.
        is_block: for each layer whether it is a block.
        num_stages: stages, at least one.

    Raises:
        ValueError: there are fewer blocks than stages, or a cost is negative.
    """
    if sum(is_block) < num_stages:
        raise ValueError(f"number of blocks must be at least {num_stages} (stages), but is {sum(is_block)}")
    if min(costs) < 0:
        raise ValueError(f"costs must be at least 0, but the smallest is {min(costs)}")
    layers = _Layers(costs, is_block)
    # Squares can decide only once the limit is known: a part of the best partition need not be the best for its layers.
    return _flattest(layers, layers.windows(_least_limit(layers, num_stages)), num_stages)


Windows = Sequence[range]
"""Starts of the stages that may end at each stop: those with a block that do not cost too much."""


class _Layers:
    """Sums over the layers. With costs that are not negative, a part of a stage never costs more than the stage."""

    def __init__(self, costs: Sequence[float], is_block: Sequence[bool]) -> None:
        self.prefix = (0.0, *accumulate(costs))
        self.blocks = (0, *accumulate(map(int, is_block)))
        self.count = len(costs)
        # For each stop, the last start from which a stage that ends there holds a block; -1: there is none.
        self._last_starts = [-1]
        for index, one in enumerate(is_block):
            self._last_starts.append(index if one else self._last_starts[-1])

    def windows(self, limit: float) -> Windows:
        """Return the stages that cost at most `limit`."""
        found, first, prefix = [], 0, self.prefix
        for stop, last in enumerate(self._last_starts):
            while first < stop and prefix[stop] - prefix[first] > limit:
                first += 1
            found.append(range(first, last + 1))
        return found

    def stage_costs(self, above: float, most: float) -> set[float]:
        """Return the costs of all possible stages between two bounds, the upper one included."""
        wide, narrow = self.windows(most), self.windows(above)
        return {
            self.prefix[stop] - self.prefix[start]
            for stop in range(self.count + 1)
            for start in range(wide[stop].start, min(wide[stop].stop, narrow[stop].start))
        }


def _fewest(windows: Windows) -> list[float]:
    """Return for each stop the smallest number of stages into which the layers before it can be cut; inf: none."""
    found = [0.0]
    for window in windows[1:]:
        found.append(1.0 + min(found[window.start : window.stop], default=math.inf))
    return found


def _least_limit(layers: _Layers, num_stages: int) -> float:
    """Return the smallest cost of the most expensive stage.

    A partition into fewer stages is enough: while blocks are left, a stage that holds two can be cut in two.
    """

    def is_enough(limit: float) -> bool:
        return _fewest(layers.windows(limit))[-1] <= num_stages

    # One stage of all layers is always possible, and nothing costs less than 0.
    short, enough = -1.0, layers.prefix[-1]
    for _ in range(_HALVINGS):
        middle = (short + enough) / 2
        short, enough = (short, middle) if is_enough(middle) else (middle, enough)
    found = sorted(layers.stage_costs(short, enough))
    return found[bisect_left(found, True, key=is_enough)]


_HALVINGS = 16
"""Enough that few stages have a cost between the bounds of the limit that are left."""


def _flattest(layers: _Layers, windows: Windows, num_stages: int) -> tuple[int, ...]:
    """Return the bounds with the smallest sum of squared costs, of equal sums the smallest bounds."""
    prefix, blocks, stops = layers.prefix, layers.blocks, range(layers.count + 1)
    squares = [[(prefix[stop] - prefix[start]) ** 2 for start in windows[stop]] for stop in stops]
    before, after = _fewest(windows), _fewest_after(windows)
    sums: list[float] = [0.0] + [math.inf] * layers.count
    bounds: list[tuple[int, ...]] = [(0,)] + [()] * layers.count
    for stage in range(1, num_stages + 1):
        left, new_sums = num_stages - stage, [math.inf] * len(stops)
        new_bounds: list[tuple[int, ...]] = [()] * len(stops)
        for stop in stops:
            # Only what can be reached in so many stages, and from where the rest can be cut into those that are left.
            if not (before[stop] <= stage <= blocks[stop] and after[stop] <= left <= blocks[-1] - blocks[stop]):
                continue
            window = windows[stop]
            found = list(map(add, sums[window.start : window.stop], squares[stop]))
            least = min(found)
            alike = (bounds[start] for start, one in zip(window, found, strict=True) if one == least)
            new_sums[stop], new_bounds[stop] = least, (*min(alike), stop)
        sums, bounds = new_sums, new_bounds
    return bounds[-1]


def _fewest_after(windows: Windows) -> list[float]:
    """Return for each start the smallest number of stages into which the layers behind it can be cut; inf: none."""
    found = [math.inf] * (len(windows) - 1) + [0.0]
    for stop in reversed(range(1, len(windows))):
        for start in windows[stop]:
            found[start] = min(found[start], 1.0 + found[stop])
    return found


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
