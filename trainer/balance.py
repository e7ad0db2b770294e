"""`trident balance`: partition a pipeline into stages by the measured time of its layers, not by their counted work.

It prints `layout.stage_boundaries` for the config instead of deciding at the start of a run: two measurements of the
same machine differ a little, and a run must be the same when it is started again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import DeviceKind, TridentConfig
from trainer.config.validate import fill_machine, validate
from trainer.errors import ConfigError
from trainer.launcher.environment import gpu_count, prepare_environment
from trainer.log import say
from trainer.machine import usable_cores
from trainer.pipeline.partition import balanced_bounds, boundaries, layer_costs, stage_bounds
from trainer.spec.model import LayerKind

WORTH_IT = 1.02
"""Speed-up from which on other stages are recommended: measurements differ by a per cent or two."""


@dataclass(frozen=True)
class Cut:
    """A partition into stages, and the seconds of each stage for one micro-batch."""

    bounds: tuple[int, ...]
    stages: tuple[float, ...]

    @property
    def dearest(self) -> float:
        """Seconds of the slowest stage, which all others wait for."""
        return max(self.stages)


def balance_verb(arguments: Sequence[str]) -> int:
    """Run `trident balance <arguments>` and return the exit code.

    Raises:
        ConfigError: the config is wrong, or has no pipeline.
        DataError: the vocabulary is not available.
    """
    config = compose(list(arguments))
    if config.layout.pipeline_parallel_size == 1:
        raise ConfigError(
            "layout.pipeline_parallel_size must be greater than 1 for stages to be balanced, but is 1; "
            "for example layout=pp2"
        )
    gpus = gpu_count(os.environ)
    config = fill_machine(config, gpus, usable_cores())
    # The layers are measured in one process, so the machine may have fewer devices than the run has ranks.
    validate(config)
    prepare_environment(on_cpu=config.runtime.device is DeviceKind.cpu or gpus == 0)
    plan = make_plan(config, config.model.vocab_size or _vocab_size(config))
    say(report(plan, _measured(plan)))
    return 0


def _vocab_size(config: TridentConfig) -> int:
    from trainer.data.prepare import prepare

    return prepare(config, say).vocab_size


def _measured(plan: RunPlan) -> Mapping[str, tuple[float, float]]:
    """Return the seconds of forward and backward of every layer."""
    from trainer.engine.layer_times import measure_layers
    from trainer.engine.world import choose_device

    found = measure_layers(plan, choose_device(plan.device, 0))
    return {name: (one.forward, one.backward) for name, one in found.items()}


def cut(bounds: tuple[int, ...], costs: Sequence[float]) -> Cut:
    """Return a partition with the time of its stages."""
    return Cut(bounds, tuple(sum(costs[start:stop]) for start, stop in pairwise(bounds)))


def report(plan: RunPlan, times: Mapping[str, tuple[float, float]]) -> str:
    """Return the tables and the recommendation."""
    costs = [sum(times[layer.name]) for layer in plan.model.layers]
    now, best = cut(stage_bounds(plan), costs), cut(balanced_bounds(plan, costs), costs)
    lines = [*_layer_table(plan, times), "", *_stage_table(plan, now, best), ""]
    gain = now.dearest / best.dearest
    if boundaries(plan, best.bounds) == boundaries(plan, now.bounds) or gain < WORTH_IT:
        lines.append("the stages are balanced as they are")
    else:
        found = str(boundaries(plan, best.bounds)).replace(" ", "")
        lines.append(f"layout.stage_boundaries={found} makes the slowest stage {gain:.2f} times as fast")
    return "\n".join(lines)


def _layer_table(plan: RunPlan, times: Mapping[str, tuple[float, float]]) -> list[str]:
    layers, costs = plan.model.layers, layer_costs(plan)
    total, work = sum(map(sum, times.values())), sum(costs)
    alike = Counter(layer.spec for layer in layers)
    shown: set[object] = set()
    first_block = plan.model.blocks[0]
    lines = [f"{'layer':<24} {'forward ms':>11} {'backward ms':>11} {'of time':>8} {'of work':>8}"]
    for layer, cost in zip(layers, costs, strict=True):
        if layer.spec in shown:
            continue
        shown.add(layer.spec)
        label = "head with loss" if layer.kind is LayerKind.head else layer.name
        if layer.kind is LayerKind.block:
            label = f"{'block' if layer.spec == first_block else layer.name} ({alike[layer.spec]}, each)"
        forward, backward = times[layer.name]
        lines.append(
            f"{label:<24} {1e3 * forward:>11.3f} {1e3 * backward:>11.3f} "
            f"{(forward + backward) / total:>8.1%} {cost / work:>8.1%}"
        )
    return lines


def _stage_table(plan: RunPlan, now: Cut, best: Cut) -> list[str]:
    given = "as configured" if plan.stage_boundaries else "by counted work"
    lines = [f"{'first block of a stage':<40} {'stages, ms a micro-batch'}"]
    for title, one in ((given, now), ("by measured time", best)):
        where = f"{title} {boundaries(plan, one.bounds)}"
        lines.append(f"{where:<40} {'  '.join(f'{1e3 * stage:.2f}' for stage in one.stages)}")
    return lines
