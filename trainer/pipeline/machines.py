"""A warning about ranks that communicate much across machines, with its cost. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from trainer.config.keys import joined
from trainer.config.plan import RunPlan, make_plan
from trainer.config.validate import problems
from trainer.pipeline.traffic import node_traffic, split_tensor_groups

_NAMED = 8
"""Largest number of ranks or machines that are named; the rest is counted."""


def placement_warning(plan: RunPlan, nodes: Sequence[str]) -> str | None:
    """Return the problem with a layout whose tensor-parallel groups lie on several machines; None if there is none.

    Args:
        plan: numbers of the run.
        nodes: name of the machine of every rank, in rank order.
    """
    split = split_tensor_groups(plan, nodes)
    if not split:
        return None
    places = sorted({nodes[rank] for rank in split[0]})
    cost = node_traffic(plan, nodes).tensor_bytes
    groups = plan.world_size // plan.tensor_parallel_size
    way = next(_ways_out(plan, nodes), "")
    return (
        f"tensor-parallel ranks should share a machine, but {len(split)} of {groups} group{'s' * (groups > 1)} "
        f"{'do' if len(split) > 1 else 'does'} not (ranks {_few(split[0])} are on {_few(places, 'and')}): in each step "
        f"{size_of(cost)} leave the busiest machine, and every layer waits for its part{way}"
    )


def _few(items: Sequence[object], last: str = ",") -> str:
    if len(items) > _NAMED:
        return f"{', '.join(map(str, items[: _NAMED - 1]))} and {len(items) - _NAMED + 1} more"
    return ", ".join(map(str, items)) if last == "," else joined(items, last)


def _ways_out(plan: RunPlan, nodes: Sequence[str]) -> Iterator[str]:
    counts = Counter(nodes)
    if all(count % plan.tensor_parallel_size == 0 for count in counts.values()):
        yield "; start the ranks machine by machine (srun --distribution=block), then none do"
    for size in range(plan.tensor_parallel_size - 1, 0, -1):
        smaller = _with_tensor_size(plan, size)
        if smaller is None or any(count % size for count in counts.values()):
            continue
        in_blocks = sorted(nodes, key=list(counts).index)
        traffic = node_traffic(smaller, in_blocks)
        yield (
            f"; layout.tensor_parallel_size={size} with layout.pipeline_parallel_size="
            f"{smaller.pipeline_parallel_size} keeps them together: then {size_of(traffic.pipeline_bytes)} leave it, "
            "between stages"
        )


def _with_tensor_size(plan: RunPlan, size: int) -> RunPlan | None:
    """Return the plan with fewer tensor-parallel ranks and as many more stages, if that is legal."""
    if plan.tensor_parallel_size % size:
        return None
    config = plan.config
    layout = replace(
        config.layout,
        tensor_parallel_size=size,
        pipeline_parallel_size=plan.world_size // (size * plan.data_parallel_size),
        data_parallel_size=plan.data_parallel_size,
        sequence_parallel=config.layout.sequence_parallel and size > 1,
        stage_boundaries=(),
    )
    changed = replace(config, layout=layout)
    if problems(changed, plan.world_size):
        return None
    return make_plan(changed, plan.model.vocab_size, plan.world_size)


def size_of(count: float) -> str:
    """Return bytes in words: `12 GB`, `3.4 MB`."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"
