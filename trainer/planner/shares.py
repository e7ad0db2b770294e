"""The layers of each pipeline rank, as the planned software places them. No torch."""

from __future__ import annotations

from itertools import pairwise

from trainer.config.plan import RunPlan
from trainer.config.schema_cluster import Software
from trainer.pipeline.partition import stage_bounds
from trainer.spec.model import Layer, LayerKind


def rank_layers(plan: RunPlan, software: Software) -> tuple[tuple[Layer, ...], ...]:
    """Return the layers of each pipeline rank, in order of ranks.

    Trident places layers by their cost, unless `layout.stage_boundaries` says where stages begin. Megatron, and
    DeepSpeed with `partition_method="type:transformer"`, give every stage as many blocks, whatever the embedding and
    the head cost.
    Interleaved chunks are as large as one another, so that a rank has the same layers of the same kinds.
    """
    layers, pp = plan.model.layers, plan.pipeline_parallel_size
    if software is Software.trident or plan.stage_boundaries:
        found: list[list[Layer]] = [[] for _ in range(pp)]
        for index, (start, stop) in enumerate(pairwise(stage_bounds(plan))):
            found[plan.schedule.owner(index, pp)].extend(layers[start:stop])
        return tuple(tuple(owned) for owned in found)
    bounds = _equal_bounds([layer.kind is LayerKind.block for layer in layers], pp)
    return tuple(layers[start:stop] for start, stop in pairwise(bounds))


def _equal_bounds(is_block: list[bool], pp: int) -> list[int]:
    """Return bounds of stages with as many blocks each; where it does not come out even the first have one more."""
    first, count = is_block.index(True), sum(is_block)
    size, rest = divmod(count, pp)
    inner = [first + stage * size + min(stage, rest) for stage in range(1, pp)]
    return [0, *inner, len(is_block)]
