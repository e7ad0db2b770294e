"""Refusals that explain themselves: each broken rule with its reason, and the nearest layouts that work. No torch."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.plan import RunPlan
from trainer.config.rule_reasons import REASONS
from trainer.config.schema import TridentConfig
from trainer.config.validate import broken_rules
from trainer.errors import ConfigError
from trainer.planner.predict import Planner
from trainer.planner.prediction import GIB
from trainer.planner.report import worlds
from trainer.planner.screen import change
from trainer.planner.search import Found, nearest

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


def too_large(planner: Planner, plan: RunPlan) -> ConfigError | None:
    """Return the error of a run that surely does not fit, with the nearest layouts that do; None if it may fit.

    A run is refused when it would not fit even if it needs less than predicted by the prediction's own error.
    """
    found = planner.predict(plan, exact=False)
    sure = 1.0 - found.confidence.memory
    stage = found.stages[found.fullest]
    if sure * found.peak <= found.device_bytes and (
        found.host_bytes is None or sure * found.host_needed <= found.host_bytes
    ):
        return None
    name, largest = max(stage.by_purpose.items(), key=lambda item: item[1])
    if sure * found.peak > found.device_bytes:
        line = (
            f"a device has {found.device_bytes / GIB:,.2f} GiB, but stage {found.fullest} needs "
            f"{found.peak / GIB:,.2f} GiB, most of it {name} ({largest / GIB:,.2f} GiB); change the layout"
        )
    else:
        line = (
            f"a machine has {(found.host_bytes or 0) / GIB:,.2f} GiB, but offload takes "
            f"{found.host_needed / GIB:,.2f} GiB of it; use more machines, or zero.offload=none"
        )
    near = nearest(planner, plan, worlds(planner, plan), count=COUNT)
    hints = [f"this fits: {change(one, plan.config)}" for one in near]
    return ConfigError(line, hints or ["no layout of this model and batch fits on these devices"])
