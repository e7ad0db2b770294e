"""Refusals that explain themselves: each broken rule with its reason, and the nearest layouts that work. No torch."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.plan import RunPlan
from trainer.config.rule_reasons import REASONS
from trainer.config.schema import TridentConfig
from trainer.config.validate import broken_rules
from trainer.errors import ConfigError, fault_line
from trainer.planner.layout_search import Found
from trainer.planner.offers import change, offered
from trainer.planner.post_mortem import Foreseen
from trainer.planner.predict import Planner
from trainer.planner.prediction import GIB
from trainer.planner.space import config_of


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
    is_of_layout = all(rule in REASONS for rule, _ in broken)
    return ConfigError(lines, _hints("this works", near, config) if is_of_layout else [])


def too_large(foreseen: Foreseen, plan: RunPlan) -> ConfigError | None:
    """Return the error of a run that surely does not fit, with the nearest layouts that do.

    Args:
        foreseen: its prediction.
        plan: the run.

    Returns:
        The error; None if the run may fit, even if only because it needs less than predicted by the memory model's own
        error, or if nothing could be predicted.
    """
    found, cluster = foreseen.prediction, foreseen.cluster
    if found is None or cluster is None or found.may_fit:
        return None
    if found.is_device_too_small:
        stage = found.stages[found.fullest]
        name, largest = max(stage.by_purpose.items(), key=lambda item: item[1])
        line = (
            f"a run must fit into the {found.device_bytes / GIB:,.2f} GiB of a device, but stage {found.fullest} "
            f"needs {stage.peak / GIB:,.2f} GiB, most of it {name} ({largest / GIB:,.2f} GiB); change the layout, or "
            "raise cluster.memory_gib if you know better"
        )
    else:
        line = (
            f"offload must fit into the {(found.host_bytes or 0) / GIB:,.2f} GiB of a machine, but takes "
            f"{found.host_needed / GIB:,.2f} GiB of it; use more machines or zero.offload=none, or raise "
            "cluster.host_memory_gib if you know better"
        )
    hints = _hints("this fits", lambda: offered(Planner(cluster), plan), config_of(plan))
    return ConfigError(line, hints or ["no layout of this model and batch fits on these devices"])


def _hints(what: str, near: Callable[[], tuple[Found, ...]], config: TridentConfig) -> list[str]:
    """Return layouts as hints. A fault of the search is told in their place: the error must not be lost for it."""
    try:
        return [f"{what}: {change(found, config)}" for found in near()]
    except Exception as error:
        return [f"no other layouts are shown, because the planner failed: {fault_line(error)}"]
