"""Reading of a command line's words: files of groups, values of keys, and folders to search. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.arguments import read_arguments
from trainer.config.choices import meant_choice
from trainer.config.keys import KEYS, coerce, did_you_mean, is_list, joined, optional, unknown_key
from trainer.config.places import absolute_path
from trainer.config.schema import TridentConfig
from trainer.config.searched import ALL_GROUPS, PRIMARY, Place, exists, find, options, own_file, places, shown
from trainer.config.words import (
    CONFIG,
    EXPERIMENT,
    SEARCHPATH,
    for_a_shell,
    list_items,
    mapping_for_a_group,
    parse,
    quoted,
)
from trainer.config.written import from_yaml, plain
from trainer.config.yaml_file import YamlFile, read_yaml
from trainer.errors import ConfigError
from trainer.run_paths import CONFIG as RUN_CONFIG

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

"""Name of the config in a run's folder and in a checkpoint."""


@dataclass
class Request:
    """Everything that the overrides ask for. A later word wins over an earlier one, so that scripts can append."""

    choices: dict[str, str | list[str] | None] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    file: YamlFile | None = None
    """File that the run starts from, instead of the files that the primary config picks."""
    primary: str = PRIMARY
    """Name of the primary config."""
    primary_file: Path = Path()
    settled: TridentConfig | None = None
    """A whole config that the words begin with; nothing is composed then."""
    places: list[Place] = field(default_factory=list)


def _check_form(override: Override, word: str) -> None:
    name = override.key_or_group
    plain_word = f"{name}=..." if "=" not in word else f"{name}={word.partition('=')[2]}"
    if name.partition(".")[0] == "hydra" or name.startswith("hydra/"):
        guess = did_you_mean(name, [SEARCHPATH])
        raise ConfigError(
            f"'{word}' has no effect: Trident uses Hydra only to compose; the run's folder is run_dir{guess}"
        )
    if name not in KEYS and name not in ALL_GROUPS and name != CONFIG:
        raise ConfigError(unknown_key(name, ALL_GROUPS, word.partition("=")[2]))
    if override.is_delete():
        raise ConfigError(f"'{word}' would remove a key, but every key must have a value; write {name}=...")
    if override.is_add() or override.is_force_add():
        raise ConfigError(f"'{word}' would add a key, but '{name}' exists; write {plain_word}")
    if override.package is not None:
        raise ConfigError(f"'{word}' moves a group to another place, but a group has one place; write {plain_word}")
    if override.is_sweep_override():
        rest = word.partition("=")[2]
        if name in KEYS and is_list(KEYS[name]):
            raise ConfigError(f"{name} must be one list, but '{rest}' gives several values; write {name}=[{rest}]")
        is_text = name == CONFIG or (name in KEYS and optional(KEYS[name])[0] is str)
        one = f", or quote what is one: {for_a_shell(f'{name}={quoted(rest)}')}" if is_text else ""
        raise ConfigError(f"{name} must be one value, but '{rest}' gives several; add --multirun for one run each{one}")


def _choice(group: str, value: object, found: list[Place]) -> str | list[str] | None:
    """Return the name of a group's file, or of several. The folder of a path is searched first for that group."""
    if value is None and group == EXPERIMENT:
        return None
    if isinstance(value, Mapping):
        raise ConfigError(mapping_for_a_group(group, value))
    if isinstance(value, list):
        return [str(_choice(group, item, found)) for item in value]
    name = "null" if value is None else str(value)
    # The name of a file in a searched folder goes first, even if it ends in .yaml.
    if not exists(found, f"{group}/{name}") or name.startswith((".", "/", "~")):
        own = own_file(group, name)
        if own is not None:
            found.insert(0, own)
            return Path(name).stem if name.endswith((".yaml", ".yml")) else Path(name).name
        names = options(found)[group]
        raise ConfigError(f"there is no {group}={name}; {meant_choice(group, name, names)}")
    return name


def _value(name: str, override: Override) -> object:
    value: object = override.value()
    inner, _ = optional(KEYS[name])
    typed = override.get_value_string()
    if inner is str and isinstance(value, (int, float)):
        value = typed.strip()  # a name such as 007, 1e4 or true stays what was typed
    if inner == tuple[str, ...] and isinstance(value, list):
        texts = list_items(typed) if any(not isinstance(item, str) for item in value) else value
        value = [text if isinstance(item, (int, float)) else item for item, text in zip(value, texts, strict=False)]
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, str) and "${" in item for item in items):
        return value  # checked once resolved
    return plain(coerce(name, KEYS[name], value))


def _start_file(value: object) -> YamlFile:
    """Return the file that `config=` names: the file itself, or the folder of a run or of a checkpoint."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{CONFIG} must name a file, such as runs/old/{RUN_CONFIG}, but is {value!r}")
    path = absolute_path(value, CONFIG)
    if path.is_dir() and (path / RUN_CONFIG).is_file():
        path = path / RUN_CONFIG
    if not path.is_file():
        what = f"is a folder without {RUN_CONFIG}" if path.is_dir() else "does not exist"
        raise ConfigError(f"{CONFIG} must name the config of a run, or a run's folder, but {value} {what}")
    return read_yaml(path)


def read_request(words: Sequence[str]) -> Request:
    """Read the words of a command line. All problems are noted at once, each of them once."""
    arguments = read_arguments(words)
    request = Request(problems=arguments.problems)
    parsed: list[tuple[Override, str]] = []
    searchpath: list[str] = []
    if arguments.settled is not None:
        request.settled = from_yaml(read_yaml(Path(arguments.settled)).text)
    for word in arguments.settings:
        try:
            override = parse(word)
            if override.key_or_group == SEARCHPATH and not override.is_delete():
                searchpath = _folders(override.value())
            elif override.key_or_group == CONFIG and not override.is_sweep_override():
                request.file = _start_file(override.value())
            else:
                parsed.append((override, word))
        except ConfigError as error:
            request.problems += error.problems
    try:
        _find_places(request, arguments.config_dirs, arguments.config_name, searchpath)
    except ConfigError as error:
        request.problems += error.problems
        request.places = places()
    for override, word in parsed:
        try:
            _check_form(override, word)
            name = override.key_or_group
            if name in KEYS:
                request.values[name] = _value(name, override)
            else:
                request.choices[name] = _choice(name, override.value(), request.places)
        except ConfigError as error:
            request.problems += error.problems
    request.problems = [" ".join(problem.split()) for problem in request.problems]
    return request


def _folders(value: object) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{SEARCHPATH} must be a list of folders, such as {SEARCHPATH}=[my_conf], but is {value!r}")
    return [os.path.expandvars(item) for item in value]


def _find_places(request: Request, dirs: Sequence[str], name: str | None, searchpath: Sequence[str]) -> None:
    """Settle the folders and the primary config, which may name further folders."""
    if request.file is not None and "defaults" in request.file.tree:
        if name is not None:
            raise ConfigError(f"--config-name={name} and {CONFIG}={request.file.name} both name a primary config")
        dirs, name = [*dirs, str(request.file.path.parent)], request.file.path.stem
        request.file = None
    path = Path(name or PRIMARY)
    if len(path.parts) > 1 and absolute_path(f"{path.with_suffix('')}.yaml", "--config-name").is_file():
        dirs, path = [*dirs, str(path.parent)], Path(path.name)
    request.primary = str(path.with_suffix("") if path.suffix in (".yaml", ".yml") else path)
    request.places = places(dirs, searchpath)
    hit = find(request.places, request.primary)
    if hit is None:
        names = sorted({file.stem for place in request.places for file in place.folder.glob("*.yaml")})
        folders = joined(shown(place.folder) for place in request.places)
        raise ConfigError(f"there is no config '{request.primary}' in {folders}{did_you_mean(request.primary, names)}")
    request.primary_file = hit[0]
    hydra = read_yaml(hit[0]).tree.get("hydra")
    if isinstance(hydra, Mapping) and hydra.get("searchpath"):
        request.places = places(dirs, [*searchpath, *_folders(_resolved_text(hydra["searchpath"]))])


def _resolved_text(value: object) -> object:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.create({"searchpath": value}), resolve=True)["searchpath"]  # type: ignore[index, call-overload]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{SEARCHPATH} cannot be resolved: {str(error).splitlines()[0]}") from None
