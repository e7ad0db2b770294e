"""Refusals that explain themselves: each broken rule with its reason, and the nearest layouts that work. No torch."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.plan import RunPlan
from trainer.config.rule_reasons import REASONS
from trainer.config.schema import TridentConfig
from trainer.config.validate import broken_rules
from trainer.errors import ConfigError
from trainer.planner.layout_search import Found, nearest
from trainer.planner.plan_report import worlds
from trainer.planner.plan_screen import change
from trainer.planner.predict import Planner
from trainer.planner.prediction import GIB

COUNT = 3
"""Layouts that a refusal offers."""


def explained(
    config: TridentConfig, world_size: int | None, device_count: int | None, near: Callable[[], tuple[Found, ...]]
) -> ConfigError | None:
    """Return the error of a config that breaks rules, with reasons, and the nearest layouts as hints.

    Args:
        config: the config as composed.
        world_size: ranks that a launcher started, or None.
        device_count: CUDA devices of this machine, or None when nobody looked.
        near: returns the nearest layouts; asked only if rules of the layout alone are broken.

    Returns:
        The error, or None if no rule is broken.
    """
    broken = broken_rules(config, world_size, device_count)
    if not broken:
        return None
    lines = [f"{line} (because {REASONS[rule]})" if rule in REASONS else line for rule, line in broken]
    hints = []
    if all(rule in REASONS for rule, _ in broken):
        hints = [f"this works: {change(found, config)}" for found in near()]
    return ConfigError(lines, hints)


def too_large(planner: Planner, plan: RunPlan, config: TridentConfig) -> ConfigError | None:
    """Return the error of a run that surely does not fit, with the nearest layouts that do; None if it may fit.

    A run is refused when it would not fit even if it needs less than predicted by the memory model's own error.

    Args:
        planner: predicts.
        plan: the run.
        config: its config.
    """
    stages, cluster = planner.stages(plan), planner.cluster
    margin = -planner.profile.memory_error.value
    if planner.fits(plan, stages, margin):
        return None
    fullest = max(range(len(stages)), key=lambda index: stages[index].peak)
    stage = stages[fullest]
    if stage.peak * (1.0 + margin) > cluster.memory_bytes.value:
        name, largest = max(stage.by_purpose.items(), key=lambda item: item[1])
        line = (
            f"a run must fit into the {cluster.memory_bytes.value / GIB:,.2f} GiB of a device, but stage {fullest} "
            f"needs {stage.peak / GIB:,.2f} GiB, most of it {name} ({largest / GIB:,.2f} GiB); change the layout, or "
            "raise cluster.memory_gib if you know better"
        )
    else:
        has = 0.0 if cluster.host_memory_bytes is None else cluster.host_memory_bytes.value
        needed = planner.ranks_per_node(plan) * max(one.host for one in stages)
        line = (
            f"offload must fit into the {has / GIB:,.2f} GiB of a machine, but takes {needed / GIB:,.2f} GiB of it; "
            "use more machines or zero.offload=none, or raise cluster.host_memory_gib if you know better"
        )
    near = nearest(planner, plan, worlds(planner, plan), count=COUNT)
    hints = [f"this fits: {change(one, config)}" for one in near]
    return ConfigError(line, hints or ["no layout of this model and batch fits on these devices"])
