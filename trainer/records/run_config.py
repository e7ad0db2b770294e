"""The config in a run's folder, whichever version wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from trainer.config.keys import KEYS
from trainer.config.schema import TridentConfig
from trainer.config.written import from_yaml
from trainer.errors import ConfigError, first_line
from trainer.records.tolerant import read_bytes
from trainer.run_paths import CONFIG, RunPaths

# libyaml's reader is ten times as fast; wheels of PyYAML have it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 20


def read_flat_config(paths: RunPaths, notes: list[str]) -> dict[str, object]:
    """Return dotted key -> plain value, of keys that this version does not know too; empty if none can be read."""
    text = _text(paths, notes)
    if text is None:
        return {}
    try:
        tree = yaml.load(text, _LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        notes.append(f"{CONFIG} cannot be read: {' '.join(str(error).split())[:200]}")
        return {}
    if not isinstance(tree, Mapping):
        notes.append(f"{CONFIG} cannot be read: it must have a key for each group, but is a {type(tree).__name__}")
        return {}
    return dict(_leaves(tree, "", _DEEPEST))


def typed_config(paths: RunPaths, notes: list[str]) -> TridentConfig | None:
    """Return the config as this version reads it; None, with a note, if it cannot."""
    text = _text(paths, [])
    if text is None:
        return None
    try:
        return from_yaml(text)
    except (ConfigError, ValueError, RecursionError) as error:
        notes.append(f"{CONFIG} is not one of this version: {first_line(error)}")
        return None


def _text(paths: RunPaths, notes: list[str]) -> str | None:
    """Return the text of the config; None if there is none, or it is none of ours, which is noted."""
    content = read_bytes(paths.config, notes)
    if content is None:
        return None
    try:
        text = content.decode()
        # Trident writes none, and a few lines of them can stand for any number of values.
        has_aliases = "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER))
    except (yaml.YAMLError, ValueError) as error:
        notes.append(f"{CONFIG} cannot be read: {' '.join(str(error).split())[:200]}")
        return None
    if has_aliases:
        notes.append(f"{CONFIG} cannot be read: it must have no aliases, but has some")
        return None
    return text


def _leaves(tree: Mapping[Any, object], prefix: str, deepest: int) -> Iterator[tuple[str, object]]:
    for leaf, value in tree.items():
        name = f"{prefix}{leaf}"
        if isinstance(value, Mapping) and value and name not in KEYS and deepest:
            yield from _leaves(value, f"{name}.", deepest - 1)
        else:
            yield name, value
