"""The layers of each stage, as the planned software places them, and the pipeline rank that owns it. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from trainer.config.plan import RunPlan
from trainer.config.schema_cluster import Software
from trainer.pipeline.partition import stage_bounds
from trainer.planner.cluster import Cluster
from trainer.spec.model import Layer, LayerKind


@dataclass(frozen=True)
class Shares:
    """Layers of the stages of a pipeline."""

    stages: tuple[tuple[Layer, ...], ...]
    """Layers of each stage, in order of stages."""
    owners: tuple[int, ...]
    """Pipeline rank that holds each stage."""


def chunks_of(plan: RunPlan, cluster: Cluster) -> int:
    """Return the chunks that interleaving cuts a rank's layers into; 1 without it."""
    is_interleaved = cluster.software is Software.megatron and plan.pipeline_parallel_size > 1
    return cluster.virtual_stages if is_interleaved else 1


def shares(plan: RunPlan, cluster: Cluster) -> Shares:
    """Return the layers of each stage.

    Trident places layers by their cost, unless `layout.stage_boundaries` says where stages begin. Megatron, and
    DeepSpeed with `partition_method="type:transformer"`, give every stage as many blocks, whatever the embedding and
    the head cost; Megatron's interleaved schedule deals stages out to ranks in turn.
    """
    layers, pp, software = plan.model.layers, plan.pipeline_parallel_size, cluster.software
    chunks = chunks_of(plan, cluster)
    if software is Software.trident or (plan.stage_boundaries and chunks == 1):
        bounds = stage_bounds(plan)
        owners = tuple(plan.schedule.owner(index, pp) for index in range(len(bounds) - 1))
    else:
        bounds = _equal_bounds([layer.kind is LayerKind.block for layer in layers], pp * chunks)
        owners = tuple(index % pp for index in range(pp * chunks))
    return Shares(tuple(layers[start:stop] for start, stop in pairwise(bounds)), owners)


def _equal_bounds(is_block: list[bool], stages: int) -> tuple[int, ...]:
    """Return bounds of stages with as many blocks each; where it does not come out even the first have one more."""
    first, count = is_block.index(True), sum(is_block)
    size, rest = divmod(count, stages)
    inner = (first + stage * size + min(stage, rest) for stage in range(1, stages))
    return (0, *inner, len(is_block))
