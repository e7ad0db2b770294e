"""Rules between keys, checked before anything starts: all problems at once, each naming legal values. No torch."""

from __future__ import annotations

from dataclasses import replace

from trainer.config import (
    rules_batch,
    rules_blend,
    rules_cluster,
    rules_examples,
    rules_frozen,
    rules_layout,
    rules_logging,
    rules_lora,
    rules_model,
    rules_optimizer,
    rules_options,
    rules_profile,
    rules_ranges,
    rules_training,
)
from trainer.config.elastic import Elastic
from trainer.config.rules_common import Case, Rule
from trainer.config.schema import DeviceKind, TridentConfig
from trainer.errors import ConfigError

ARITHMETIC: tuple[Rule, ...] = (
    *rules_model.RULES,
    *rules_options.RULES,
    *rules_frozen.RULES,
    *rules_lora.RULES,
    *rules_optimizer.RULES,
    *rules_batch.ARITHMETIC,
    *rules_layout.RULES,
    *rules_profile.ARITHMETIC,
    *rules_cluster.ARITHMETIC,
)
"""Rules that divide by sizes; asked only when every size is positive."""
_ALWAYS: tuple[Rule, ...] = (
    *rules_ranges.RULES,
    *rules_training.RULES,
    *rules_blend.RULES,
    *rules_batch.RULES,
    *rules_examples.RULES,
    *rules_logging.RULES,
    *rules_profile.RULES,
    *rules_cluster.RULES,
)
ALL_RULES: tuple[Rule, ...] = (*ARITHMETIC, *_ALWAYS)
"""Every rule that a config must keep."""


def problems(config: TridentConfig, world_size: int | None = None, device_count: int | None = None) -> list[str]:
    """Return one line for each thing that is wrong with the config; an empty list if it can run."""
    return [line for _, line in broken_rules(config, world_size, device_count)]


def broken_rules(
    config: TridentConfig, world_size: int | None = None, device_count: int | None = None
) -> list[tuple[Rule, str]]:
    """Return each rule that the config breaks, with the line that says so."""
    case = Case(config, world_size, device_count)
    rules = list(_ALWAYS)
    if rules_ranges.sizes_are_positive(case):
        rules[1:1] = ARITHMETIC
    return [(rule, line) for rule in rules for line in rule(case)]


def fill_machine(config: TridentConfig, device_count: int, cores: int) -> TridentConfig:
    """Return the config with `layout.data_parallel_size=auto` replaced by what this machine holds.

    That is the largest number of replicas, at least 1, that has a GPU (on the CPU: a core) for each rank and breaks no
    rule, so that the global batch size can stay as it is.

    Args:
        config: the config as composed.
        device_count: CUDA devices of this machine.
        cores: CPU cores that this process may use.
    """
    layout = config.layout
    if layout.data_parallel_size is not Elastic.auto:
        return config
    on_cpu = config.runtime.device is DeviceKind.cpu or device_count == 0
    ranks_of_a_replica = max(1, layout.pipeline_parallel_size * layout.tensor_parallel_size)
    room = (cores if on_cpu else device_count) // ranks_of_a_replica
    # A replica reads at least one sequence a step.
    for replicas in range(min(room, config.batch.global_batch_size), 1, -1):
        filled = replace(config, layout=replace(layout, data_parallel_size=replicas))
        if not problems(filled, None, device_count):
            return filled
    return replace(config, layout=replace(layout, data_parallel_size=1))


def validate(config: TridentConfig, world_size: int | None = None, device_count: int | None = None) -> None:
    """Check every rule that needs no machine, no file and no network.

    Args:
        config: the config as composed.
        world_size: ranks that a launcher started, or None when this process will start them.
        device_count: CUDA devices of this machine, or None when nobody looked.

    Raises:
        ConfigError: all problems, one line each: what must hold, what was found, which value to use.
    """
    found = problems(config, world_size, device_count)
    if found:
        raise ConfigError(found)
