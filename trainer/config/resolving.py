"""Interpolations such as `${model.hidden_size}` and `${oc.env:HOME}` resolved, or told by key and name. No torch."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.keys import KEYS, did_you_mean, joined
from trainer.config.yaml_file import one_line
from trainer.errors import ConfigError

_VARIABLE = re.compile(r"Environment variable '(.*?)' not found")
_NO_KEY = re.compile(r"Interpolation key '(.*?)' not found")
_NO_RESOLVER = re.compile(r"Unsupported interpolation type (\S+)")
_NO_VALUE = re.compile(r"Missing mandatory value")
_RESOLVERS = ("oc.env", "oc.select", "oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values", "oc.deprecated", "now")


def resolved(tree: DictConfig) -> dict[str, object]:
    """Return key -> plain value of every key that the tree has, with nothing left to resolve.

    Raises:
        ConfigError: every key that cannot be resolved, and why.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    for key in KEYS:
        parent = OmegaConf.select(tree, key.rpartition(".")[0]) if "." in key else tree
        leaf = key.rpartition(".")[2]
        if not isinstance(parent, DictConfig) or leaf not in parent._content:  # type: ignore[operator]
            continue
        try:
            values[key] = _value(parent, key, leaf)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return values


def _value(parent: DictConfig | ListConfig, name: str, leaf: Any) -> object:
    node = parent._get_node(leaf)
    text = getattr(node, "_value", lambda: None)()
    try:
        if not (isinstance(node, ListConfig) and isinstance(text, list)):
            value = parent[leaf]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except RecursionError:
        raise ConfigError(f"{_named(name, text)} cannot be resolved: its interpolations lead back to itself") from None
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError(f"{_named(name, text)} cannot be resolved: {_reason(error)}") from None
    # Item by item, so that the one at fault is named.
    problems: list[str] = []
    items: list[object] = []
    for index in range(len(node)):
        try:
            items.append(_value(node, f"{name}[{index}]", index))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return items


def _named(name: str, text: object) -> str:
    return f"{name} ({text})" if isinstance(text, str) and "${" in text and "\n" not in text else name


def _reason(error: BaseException) -> str:
    whole = one_line(error)
    variable, key, resolver = (pattern.search(whole) for pattern in (_VARIABLE, _NO_KEY, _NO_RESOLVER))
    if variable:
        name = variable[1]
        return f"the environment variable {name} is not set; set it, or give a default: ${{oc.env:{name},DEFAULT}}"
    if key:
        return f"there is no key '{key[1]}'{did_you_mean(key[1], KEYS)}"
    if resolver:
        return f"there is no resolver '{resolver[1]}'{did_you_mean(resolver[1], _RESOLVERS)}; there are " + joined(
            _RESOLVERS, "and"
        )
    if _NO_VALUE.search(whole):
        return "it has no value (???); give it one"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rstrip(".")
