"""From the words after `trident train` to one frozen TridentConfig.

Hydra composes the groups in `conf/`; everything around it is here, because Hydra 1.3 stops at the first bad override,
never suggests what was meant, accepts a mistyped key behind `+`, and ends with a page of text. Overrides are checked
one by one against the schema first, so that one answer names all of them. No torch.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import trainer
from trainer.config.keys import (
    GROUPS,
    KEYS,
    build,
    coerce,
    did_you_mean,
    flatten,
    is_list,
    joined,
    optional,
    unknown_key,
)
from trainer.config.schema import TridentConfig
from trainer.config.wandb_variables import folder_in_sweep, literal, values_in
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PRIMARY = "train"
"""conf/train.yaml: the table of contents."""
NULLABLE_GROUP = "experiment"
"""The one group that may be left out (`experiment=null`)."""
LOCAL_RANK = re.compile(r"--local[-_]rank(=\d+)?")
"""What the deepspeed launcher puts before the user's words."""


def conf_folder() -> Path:
    """Return the folder of the YAML files: inside an installed package, beside it in a source tree.

    Raises:
        ConfigError: there is none, so the installation is broken.
    """
    package = Path(trainer.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{PRIMARY}.yaml").is_file():
            return folder
    raise ConfigError(f"conf/{PRIMARY}.yaml must be installed with trident, but is not in {package}; install it again")


@functools.cache
def _options() -> Mapping[str, tuple[str, ...]]:
    folder = conf_folder()
    names = [*GROUPS, NULLABLE_GROUP]
    return {name: tuple(sorted(path.stem for path in (folder / name).glob("*.yaml"))) for name in names}


def options() -> dict[str, list[str]]:
    """Return group -> names of its files, in the order of conf/train.yaml. Reads only file names."""
    return {group: list(names) for group, names in _options().items()}


@dataclass
class _Request:
    """What the overrides ask for. A later word wins over an earlier one, so that scripts can append."""

    choices: dict[str, str | None] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def without_local_rank(words: Sequence[str]) -> list[str]:
    """Return the words without `--local_rank=N` or `--local_rank N`, wherever it stands."""
    kept: list[str] = []
    rank_follows = False
    for word in words:
        if rank_follows and word.isdigit():
            rank_follows = False
            continue
        match = LOCAL_RANK.fullmatch(word)
        rank_follows = match is not None and match[1] is None
        if match is None:
            kept.append(word)
    return kept


def _parse(word: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if word.startswith("-"):
        raise ConfigError(f"there is no option '{word}'; settings are written key=value, for example train.steps=10")
    if "=" not in word and not word.startswith("~"):
        guess = did_you_mean(word, [*GROUPS, *KEYS], "'{}=...'")
        raise ConfigError(f"'{word}' must be written key=value, for example train.steps=10{guess}")
    try:
        return OverridesParser.create().parse_override(word)
    except Exception:  # the grammar raises its own errors, ValueError for huge numbers, RecursionError for deep nesting
        key, _, value = word.partition("=")
        raise ConfigError(
            f"'{word}' cannot be read as key=value; quote a value that holds spaces, commas or "
            f"""brackets: '{key}="{value}"'"""
        ) from None


def _check_form(override: Override, word: str) -> None:
    name = override.key_or_group
    known = name in KEYS or name in _options()
    plain = f"{name}=..." if "=" not in word else f"{name}={word.partition('=')[2]}"
    if name.partition(".")[0] == "hydra" or name.startswith("hydra/"):
        raise ConfigError(f"'{word}' has no effect: Trident uses Hydra only to compose; the run's folder is run_dir")
    if not known:
        raise ConfigError(unknown_key(name, list(_options())))
    if override.is_delete():
        raise ConfigError(f"'{word}' would remove a key, but every key must have a value; write {name}=...")
    if override.is_add() or override.is_force_add():
        raise ConfigError(f"'{word}' would add a key, but '{name}' exists; write {plain}")
    if override.package is not None:
        raise ConfigError(f"'{word}' moves a group to another place, but a group has one place; write {plain}")
    if override.is_sweep_override():
        rest = word.partition("=")[2]
        if name in KEYS and is_list(KEYS[name]):
            raise ConfigError(f"{name} must be one list, but '{rest}' gives several values; write {name}=[{rest}]")
        raise ConfigError(f"{name} must be one value, but '{rest}' gives several; add --multirun for one run each")


def _choice(group: str, value: object) -> str | None:
    names = _options()[group]
    if value is None and group == NULLABLE_GROUP:
        return None
    if isinstance(value, Mapping):
        raise ConfigError(f"{group} takes the name of a file in conf/{group}; set single keys as {group}.key=value")
    name = "null" if value is None else str(value)
    if name not in names:
        guess = did_you_mean(name, names, f"{group}={{}}") or f"; choose from {', '.join(names)}"
        raise ConfigError(f"there is no {group}={name}{guess}")
    return name


def _value(name: str, override: Override, word: str) -> object:
    value: object = override.value()
    inner, _ = optional(KEYS[name])
    if inner is str and isinstance(value, (int, float)):
        value = word.partition("=")[2].strip()  # a name such as 007 or 1e4 stays what was typed
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and "${" in text for text in texts):
        return value  # checked once resolved
    return _plain(coerce(name, KEYS[name], value))


def _read(words: Sequence[str]) -> _Request:
    request = _Request()
    for word in without_local_rank(words):
        try:
            override = _parse(word)
            _check_form(override, word)
            name = override.key_or_group
            if name in KEYS:
                request.values[name] = _value(name, override, word)
            else:
                request.choices[name] = _choice(name, override.value())
        except ConfigError as error:
            request.problems += [" ".join(problem.split()) for problem in error.problems]
    return request


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _compose(request: _Request, environ: Mapping[str, str]) -> dict[str, object]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from trainer.config.register import register

    register()
    chosen = [f"{group}={'null' if name is None else name}" for group, name in request.choices.items()]
    try:
        with initialize_config_dir(str(conf_folder()), job_name="trident", version_base="1.3"):
            composed = hydra_compose(PRIMARY, overrides=chosen)
    except HydraException as error:
        raise ConfigError(f"conf/ must compose, but {_one_line(error.__cause__ or error)}") from None
    keeps_off = "logging" in request.choices and composed.logging.wandb.value in ("offline", "disabled")
    decided = {name: literal(value) for name, value in values_in(environ, request.values, keeps_off).items()}
    for name, value in {**request.values, **decided}.items():
        try:
            OmegaConf.update(composed, name, value, merge=False)
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{name} cannot be {value!r}: {_one_line(error)}") from None
    flat: dict[str, object] = {}
    problems: list[str] = []
    for key in KEYS:
        try:
            node = OmegaConf.select(composed, key, throw_on_missing=True)
        except (OmegaConfBaseException, RecursionError) as error:
            problems.append(f"{key} cannot be resolved: {_one_line(error)}")
            continue
        flat[key] = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if problems:
        raise ConfigError(problems)
    return {key: _plain(value) for key, value in flat.items()}


def compose(overrides: Sequence[str]) -> TridentConfig:
    """Compose `conf/train.yaml` with wandb's environment variables and, over them, the user's overrides.

    Args:
        overrides: words such as `model=gpt2_124m` (a file of a group), `optimizer.lr=1e-4` (a key). Where the same
            thing is given twice, the later word wins. A stray `--local_rank=N` is ignored.

    Raises:
        ConfigError: every override that cannot be used, each with what may have been meant. Rules between keys are
            the business of `validate`.
    """
    request = _read(overrides)
    if request.problems:
        raise ConfigError(request.problems)
    composed = _compose(request, os.environ)
    return build({**composed, "run_dir": folder_in_sweep(str(composed["run_dir"]), os.environ)})


def recompose(config: TridentConfig, overrides: Sequence[str], may_change: Collection[str]) -> TridentConfig:
    """Return a finished config with overrides on top: a key sets itself, a group all keys that the group has.

    Args:
        config: of an earlier run.
        overrides: words as for `compose`.
        may_change: groups, and single keys, that the words may name.

    Raises:
        ConfigError: every override that cannot be used, or that names something else.
    """
    request = _read(overrides)
    problems = list(request.problems)
    for name in (*request.choices, *request.values):
        if name not in may_change and name.partition(".")[0] not in may_change:
            problems.append(f"'{name}' cannot be changed here; only {joined(may_change, 'and')} can")
    for name, value in request.values.items():
        if "${" in str(value):
            problems.append(f"{name} must be a value here, but is {value!r}")
    if problems:
        raise ConfigError(problems)
    composed = _compose(request, environ={})
    changed = {
        key: composed[key] for key in composed if key in request.values or key.partition(".")[0] in request.choices
    }
    return build({**{key: _plain(value) for key, value in flatten(config).items()}, **changed})


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def to_yaml(config: TridentConfig) -> str:
    """Return the config as YAML: every key, schema order, plain values. The same config gives the same text."""
    tree: dict[str, Any] = {}
    for key, value in flatten(config).items():
        group, _, leaf = key.rpartition(".")
        target = tree.setdefault(group, {}) if group else tree
        target[leaf] = _plain(value)
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    # Unicode's own line ends are written as they are, and read back as spaces.
    if any(end in text for end in "\x85\u2028\u2029"):
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=False, width=10_000)
    return text


def _leaves(tree: Mapping[Any, object]) -> Iterable[tuple[str, object]]:
    for name, value in tree.items():
        if name in GROUPS and isinstance(value, Mapping | None):
            yield from ((f"{name}.{leaf}", leaf_value) for leaf, leaf_value in (value or {}).items())
        else:
            yield str(name), value


def from_yaml(text: str) -> TridentConfig:
    """Return the config that `to_yaml` wrote; a key that is left out takes its default.

    Raises:
        ConfigError: the text is not YAML, or every unknown key and every value of the wrong type.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the config must be YAML, but {_one_line(error)}") from None
    if tree is not None and not isinstance(tree, Mapping):
        raise ConfigError(f"the config must be YAML with one key per group, but is a {type(tree).__name__}")
    return build(dict(_leaves(tree or {})))


def differences(a: TridentConfig, b: TridentConfig) -> list[str]:
    """Return the dotted keys whose values differ, in the order of the schema."""
    first, second = flatten(a), flatten(b)
    return [key for key in first if first[key] != second[key]]
