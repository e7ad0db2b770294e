"""Resolve interpolations such as `${model.hidden_size}` and `${oc.env:HOME}`; a problem is told by key and name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.config_file import MISSING
from trainer.config.keys import GROUPS, KEYS, did_you_mean, joined
from trainer.config.yaml_file import one_line
from trainer.errors import ConfigError

_OPEN = "trident.open"
"""Resolver for a value that a file leaves open. With OmegaConf's own mark, an earlier value would stay in place."""
_RESOLVERS = ("oc.env", "oc.select", "oc.decode", "oc.create", "oc.dict.keys", "oc.dict.values", "oc.deprecated", "now")
_TOLD: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (
        r"Environment variable '(.*?)' not found",
        lambda match: (
            f"the environment variable {match[1]} is not set; set it, or give a default: ${{oc.env:{match[1]},DEFAULT}}"
        ),
    ),
    (r"Interpolation key '(.*?)' not found", lambda match: f"there is no key '{match[1]}'{_near(match[1])}"),
    (r"Error resolving key '(.*?)'", lambda match: f"there is no key '{match[1]}'{_near(match[1])}"),
    (
        r"Unsupported interpolation type (\S+)",
        lambda match: f"there is no resolver '{match[1]}'; there are {joined(_RESOLVERS, 'and')}",
    ),
    (r"Recursive interpolation detected|recursion", lambda match: "its interpolations lead back to itself"),
    (r"Cannot convert '(?:Dict|List)Config' to", lambda match: "it gives several values, but the key takes one"),
    (r"Missing mandatory value", lambda match: "what it refers to has no value (???)"),
    (
        r"Value '(.*?)' of type '\w+' could not be converted to (\w+)",
        lambda match: f"it gives '{match[1]}', which is no {match[2].lower()}",
    ),
    (r"\w+ raised while resolving interpolation: (.*)", lambda match: match[1]),
)
"""Pattern of OmegaConf's message -> the message that is shown instead."""


def as_tree(tree: Mapping[str, Any], name: str) -> DictConfig:
    """Return the content of a file, which errors call `name`, as Hydra merges it.

    Raises:
        ConfigError: it holds a `${` that begins no interpolation.
    """
    # A group whose keys are all commented out counts as left out; what is under `hydra` was read before.
    kept = {key: value for key, value in tree.items() if key != "hydra" and not (key in GROUPS and value is None)}
    try:
        return cast(DictConfig, OmegaConf.create(_with_open_values(kept, name)))
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        key = re.search(r"full_key: (\S+)", str(error))
        at = f"{name}: {key[1]}" if key else name
        raise ConfigError(f"{at} cannot be read: {one_line(error)}; a text that holds ${{ is written \\${{") from None


def _with_open_values(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: inner if key == "defaults" else _with_open_values(inner, name) for key, inner in value.items()}
    return f"${{{_OPEN}:'{name}'}}" if value == MISSING else value


def as_written(value: object) -> object:
    """Return an unresolved value as a file would hold it."""
    return MISSING if isinstance(value, str) and value.startswith(f"${{{_OPEN}:") else value


def resolved(tree: DictConfig, choices: Mapping[str, str]) -> dict[str, object]:
    """Return key -> plain value of every key that the tree has, with nothing left to resolve.

    Args:
        tree: the tree as it was composed.
        choices: group -> name of its file, for `${hydra:runtime.choices.GROUP}`.

    Raises:
        ConfigError: every key that cannot be resolved, and why.
    """
    _register(choices)
    values: dict[str, object] = {}
    wrong: dict[str, list[str]] = {}
    for key in KEYS:
        *owners, leaf = key.split(".")
        parent: object = tree
        for owner in owners:
            assert isinstance(parent, DictConfig)
            parent = parent._get_node(owner)
        assert isinstance(parent, DictConfig), "the schema's groups are always there"
        try:
            values[key] = _value(parent, key, leaf)
        except ConfigError as error:
            wrong[key] = list(error.problems)
    if wrong:
        raise ConfigError(_causes(tree, wrong))
    return values


def _register(choices: Mapping[str, str]) -> None:
    def hydra(path: str) -> object:
        known: dict[str, object] = {"runtime.cwd": os.getcwd(), "job.name": "trident"}
        known |= {f"runtime.choices.{group}": name for group, name in choices.items()}
        if path not in known:
            raise ValueError(
                f"there is no hydra:{path} here; there are hydra:runtime.cwd and hydra:runtime.choices.GROUP"
            )
        return known[path]

    def left_open(file: str) -> object:
        raise ValueError(f"{file} leaves it open (???); give it a value")

    OmegaConf.register_new_resolver("hydra", hydra, replace=True)
    OmegaConf.register_new_resolver(_OPEN, left_open, replace=True)


def _causes(tree: DictConfig, wrong: Mapping[str, list[str]]) -> list[str]:
    """Return the problems of keys that do not merely refer to another key with a problem."""
    texts = {key: str(OmegaConf.to_container(tree, resolve=False).get(key, "")) for key in wrong if "." not in key}  # type: ignore[union-attr]
    caused = [key for key, text in texts.items() if any(f"${{{other}}}" in text for other in wrong if other != key)]
    kept = [problem for key, problems in wrong.items() if key not in caused for problem in problems]
    return kept or [problem for problems in wrong.values() for problem in problems]


def _value(parent: DictConfig | ListConfig, name: str, leaf: Any) -> object:
    node = parent._get_node(leaf)
    text = getattr(node, "_value", lambda: None)()
    try:
        if not (isinstance(node, ListConfig) and isinstance(text, list)):
            value = parent[leaf]
            return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, RecursionError, ValueError, TypeError, AttributeError, KeyError) as error:
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
    shows = isinstance(text, str) and "${" in text and "\n" not in text and _OPEN not in text
    return f"{name} ({text})" if shows else name


def _reason(error: BaseException) -> str:
    text = one_line(error)
    for pattern, told in _TOLD:
        match = re.search(pattern, text)
        if match is not None:
            return told(match).rstrip(".")
    return text.rstrip(".")


def _near(key: str) -> str:
    if key in GROUPS or key in _RESOLVERS:
        return f"; write ${{{key}:...}}" if key in _RESOLVERS else ""
    return did_you_mean(key.lstrip("."), KEYS)
