"""A config as plain YAML text of the whole, as a run's folder holds it, and its reading. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import yaml

from trainer.config.blend import Written
from trainer.config.keys import OWNERS, build, flatten
from trainer.config.schema import TridentConfig
from trainer.config.yaml_file import one_line
from trainer.errors import ConfigError


def plain(value: object) -> object:
    """Return a value of a config as YAML holds it: enums as their values, tuples as lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Written):
        value = value.plain()
    if isinstance(value, Mapping):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def to_yaml(config: TridentConfig) -> str:
    """Return the config as YAML: every key, schema order, plain values. The same config gives the same text.

    A text that holds `${` is written so that it does not become an interpolation where the file is composed again.
    """
    return as_yaml({key: literal(plain(value)) for key, value in flatten(config).items()})


def as_yaml(values: Mapping[str, object]) -> str:
    """Return dotted key -> plain value as YAML, one mapping for each group."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *owners, leaf = key.split(".")
        target = tree
        for owner in owners:
            target = target.setdefault(owner, {})
        target[leaf] = value
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    # Unicode's own line ends are written unchanged, and would be read back as spaces.
    if any(end in text for end in "\x85\u2028\u2029"):
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=False, width=10_000)
    return text


def literal(value: object) -> object:
    """Return a value in a form in which OmegaConf looks for no interpolations."""
    if isinstance(value, list):
        return [literal(item) for item in value]
    if isinstance(value, dict):
        return {key: literal(held) for key, held in value.items()}
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _unescaped(value: object) -> object:
    if isinstance(value, list):
        return [_unescaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _unescaped(held) for key, held in value.items()}
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\\\$\{", lambda match: match[1][: len(match[1]) // 2] + "${", value)
    return value


def _leaves(tree: Mapping[Any, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for leaf, value in tree.items():
        name = f"{prefix}{leaf}"
        if name in OWNERS and isinstance(value, Mapping | None):
            yield from _leaves(value or {}, f"{name}.")
        else:
            yield name, value


def from_yaml(text: str) -> TridentConfig:
    """Return the config that `to_yaml` wrote; a key that is left out takes its default.

    Raises:
        ConfigError: the text is not YAML, or every unknown key and every value of the wrong type.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the config must be YAML, but {one_line(error)}") from None
    if tree is not None and not isinstance(tree, Mapping):
        raise ConfigError(f"the config must be YAML with one key per group, but is a {type(tree).__name__}")
    return build({key: _unescaped(value) for key, value in _leaves(tree or {})})


def differences(a: TridentConfig, b: TridentConfig) -> list[str]:
    """Return the dotted keys whose values differ, in the order of the schema."""
    first, second = flatten(a), flatten(b)
    return [key for key in first if first[key] != second[key]]
