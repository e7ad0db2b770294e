"""Rules between keys, checked before anything starts: all problems at once, each naming legal values. No torch."""

from __future__ import annotations

from trainer.config import rules_layout, rules_logging, rules_model, rules_ranges, rules_training
from trainer.config.rules_common import Case, Rule
from trainer.config.schema import TridentConfig
from trainer.errors import ConfigError

ARITHMETIC: tuple[Rule, ...] = (*rules_model.RULES, *rules_layout.RULES)
"""Rules that divide by sizes; asked only when every size is positive."""


def problems(config: TridentConfig, world_size: int | None = None, device_count: int | None = None) -> list[str]:
    """Return one line for each thing that is wrong with the config; an empty list if it can run."""
    case = Case(config, world_size, device_count)
    rules = [*rules_ranges.RULES, *rules_training.RULES, *rules_logging.RULES]
    if rules_ranges.sizes_are_positive(case):
        rules[1:1] = ARITHMETIC
    return [line for rule in rules for line in rule(case)]


def validate(config: TridentConfig, world_size: int | None = None, device_count: int | None = None) -> None:
    """Check every rule that needs no machine, no file and no network.

    Args:
        config: as composed.
        world_size: ranks that a launcher started, or None when this process will start them.
        device_count: CUDA devices of this machine, or None when nobody looked.

    Raises:
        ConfigError: all problems, one line each: what must hold, what was found, which value to use.
    """
    found = problems(config, world_size, device_count)
    if found:
        raise ConfigError(found)
