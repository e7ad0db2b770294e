"""The words after a verb: settings, and options that say where config files are. No torch.

`--key=value` and `--key value`, as other launchers and sweep agents write them, are settings too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.config.keys import GROUPS, KEYS, meant_key, optional
from trainer.config.words import EXPERIMENT, KNOWN, readable

CONFIG_DIR, CONFIG_NAME, SETTLED = "--config-dir", "--config-name", "--settled-config"
_OPTIONS = {
    CONFIG_DIR: CONFIG_DIR,
    "-cd": CONFIG_DIR,
    "--config-path": CONFIG_DIR,
    "-cp": CONFIG_DIR,
    CONFIG_NAME: CONFIG_NAME,
    "-cn": CONFIG_NAME,
    # Only for ranks that Trident starts: the config as their parent settled it, so that they cannot read another one.
    SETTLED: SETTLED,
}
"""Spelled as in Hydra. A folder given here is searched before those that ship, so a path is a folder like the
others."""
_LOCAL_RANK = re.compile(r"--local[-_]rank(=\d+)?")
"""The word that the deepspeed launcher puts before the user's."""
_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0")


@dataclass
class Arguments:
    """The words of a command line, sorted into settings and options."""

    settings: list[str] = field(default_factory=list)
    """Settings, `key=value`, in their order."""
    config_dirs: list[str] = field(default_factory=list)
    config_name: str | None = None
    settled: str | None = None
    """File of a whole config that is used as it is."""
    problems: list[str] = field(default_factory=list)


def without_local_rank(words: Sequence[str]) -> list[str]:
    """Return the words without `--local_rank=N` or `--local_rank N`, wherever it stands."""
    kept: list[str] = []
    rank_follows = False
    for word in words:
        if rank_follows and word.isdigit():
            rank_follows = False
            continue
        match = _LOCAL_RANK.fullmatch(word)
        rank_follows = match is not None and match[1] is None
        if match is None:
            kept.append(word)
    return kept


def read_arguments(words: Sequence[str]) -> Arguments:
    """Tell settings from options. Each problem of a word is noted once."""
    found = Arguments()
    waiting = without_local_rank(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name in _OPTIONS:
            if not equals and waiting:
                value = waiting.pop(0)
            _note_option(found, name, value)
        elif word.startswith("--"):
            _note_setting(found, word, waiting)
        elif word.startswith("-"):
            found.problems.append(_no_option(word))
        else:
            found.settings.append(word)
    return found


def plain(words: Sequence[str]) -> list[str]:
    """Return words that mean the same, each `key=value` in a form that Hydra's grammar reads; options come first."""
    found = read_arguments(words)
    options = [f"{CONFIG_DIR}={folder}" for folder in found.config_dirs]
    options += [] if found.config_name is None else [f"{CONFIG_NAME}={found.config_name}"]
    if found.problems:
        return list(words)
    return [*options, *map(readable, found.settings)]


def is_setting(word: str) -> bool:
    """Return whether a word with dashes is a setting: `--optimizer.lr=1e-4` or `--optimizer.lr`."""
    return word.startswith("--") and _key(word.partition("=")[0]) in KNOWN


def _note_option(found: Arguments, name: str, value: str) -> None:
    if not value:
        what = "a folder" if _OPTIONS[name] == CONFIG_DIR else "the name of a config"
        found.problems.append(f"{name} must be followed by {what}, but nothing follows")
    elif _OPTIONS[name] == CONFIG_DIR:
        found.config_dirs.append(value)
    elif name == SETTLED:
        found.settled = value
    else:
        found.config_name = value


def _key(name: str) -> str:
    bare = name.removeprefix("--")
    return bare if bare in KNOWN else bare.replace("-", "_")


def _note_setting(found: Arguments, word: str, waiting: list[str]) -> None:
    name, equals, value = word.partition("=")
    key = _key(name)
    if key not in KNOWN:
        if not equals and waiting and _is_value(waiting[0]):
            value = waiting.pop(0)
        found.problems.append(_no_option(f"{name}={value}" if value else word))
    elif equals:
        found.settings.append(f"{key}={value}")
    elif key in KEYS and optional(KEYS[key])[0] is bool and (not waiting or waiting[0].lower() not in _TRUTHS):
        found.settings.append(f"{key}=true")
    elif waiting and _is_value(waiting[0]):
        found.settings.append(f"{key}={waiting.pop(0)}")
    else:
        found.problems.append(f"{name} must be followed by its value, but nothing follows; write {key}=...")


def _is_value(word: str) -> bool:
    """Return whether a word can be the value of the one before it."""
    if word.startswith("-"):
        return re.fullmatch(r"-[\d.].*", word) is not None
    return word.partition("=")[0] not in KNOWN


def _no_option(word: str) -> str:
    name, _, value = word.partition("=")
    meant = meant_key(_key(name), [*GROUPS, EXPERIMENT], value)
    if meant.startswith("did you mean "):
        keys = meant.removeprefix("did you mean ").removesuffix("?")
        return f"there is no option '{name}'; did you mean the setting {keys}, as in {_first(keys)}={value or '...'}?"
    if meant:
        return f"there is no option '{name}'; {meant}"
    return f"there is no option '{word}'; settings are written key=value, for example train.steps=10"


def _first(meant: str) -> str:
    return meant.split("'")[1]
