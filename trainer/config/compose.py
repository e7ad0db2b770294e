"""Compose the words after `trident train` into one frozen TridentConfig.

Hydra composes the files of groups (`source.py`) from the user's own folders and those that ship (`places.py`). The
checks around it are ours, because Hydra 1.3 stops at the first bad override, never suggests what was meant, accepts a
mistyped key behind `+`, and ends with a page of text. Overrides (`request.py`) and files (`config_file.py`) are checked
one by one against the schema first, so that one answer names all problems. No torch.
"""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainer.config.arguments import without_local_rank as without_local_rank
from trainer.config.config_file import check_file
from trainer.config.hf_filled import CHOICE, FILE, PATH, filled, own_keys
from trainer.config.keys import KEYS, build, flatten, joined
from trainer.config.request import Request, read_request
from trainer.config.schema import TridentConfig
from trainer.config.searched import SHIPPED, Place, find, shown
from trainer.config.searched import conf_folder as conf_folder
from trainer.config.searched import options as options
from trainer.config.wandb_variables import folder_in_sweep, values_in
from trainer.config.words import CONFIG
from trainer.config.written import differences as differences
from trainer.config.written import from_yaml as from_yaml
from trainer.config.written import literal, plain
from trainer.config.written import to_yaml as to_yaml
from trainer.config.yaml_file import YamlFile, one_line
from trainer.errors import ConfigError
from trainer.log import warn

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from trainer.config.source import Choices


@dataclass(frozen=True)
class Composition:
    """A config, and the files and variables that it comes from."""

    config: TridentConfig
    request: Request
    choices: Mapping[str, str]
    """Group -> name of its file, or several with commas; those that recipes picked are among them."""
    unresolved: Mapping[str, object] = field(repr=False)
    """Dotted key -> plain value, with interpolations as they were written."""
    of_environment: Mapping[str, object] = field(repr=False, default_factory=dict)
    """Dotted key -> plain value that it would have without the environment, for keys that a variable sets."""
    taken: Sequence[str] = ()
    """Lines about what a Hugging Face model decided."""

    @property
    def places(self) -> Sequence[Place]:
        """Folders that were searched, in their order."""
        return self.request.places

    @property
    def primary(self) -> Path:
        """File of the primary config."""
        return self.request.primary_file

    def files(self) -> list[tuple[str, str, Path]]:
        """Return group, name and file of what was chosen."""
        names = [(group, name) for group, several in self.choices.items() for name in several.split(",")]
        hits = [(group, name, find(self.places, f"{group}/{name}")) for group, name in names]
        return [(group, name, hit[0]) for group, name, hit in hits if hit is not None]

    def merge_order(self) -> list[str]:
        """Return the config paths of the files in the order in which they were merged; a later one wins."""
        from trainer.config.source import merge_order

        start = self.request.file
        if start is None:
            return merge_order(self.request.primary, self.request.choices, self.places)
        return [*merge_order(self.request.primary, {}, self.places), start.name, *sorted(self.choices)]

    def told(self) -> list[str]:
        """Return a line for each file that is the user's own."""
        conf = next(place.folder for place in self.places if place.origin == SHIPPED)
        lines = [f"{CONFIG}={shown(self.request.file.path)}"] if self.request.file else []
        if not self.primary.is_relative_to(conf):
            lines.append(f"the primary config is {shown(self.primary)}")
        own = [choice for choice in self.files() if not choice[2].is_relative_to(conf)]
        return [*lines, *self.taken, *(f"{group}={name} is {shown(file)}" for group, name, file in own)]


def _compose(request: Request) -> tuple[DictConfig, Mapping[str, str]]:
    """Return the tree with the user's values in it, and the files that were chosen."""
    if request.file is None and all(place.origin == SHIPPED for place in request.places):
        choices = tuple(
            (group, name if isinstance(name, str | None) else tuple(name)) for group, name in request.choices.items()
        )
        shipped, chosen = _of_shipped_files(request.primary, choices, tuple(request.places))
        tree = copy.deepcopy(shipped)
    else:
        tree, chosen = _of_files(request.primary, request.choices, request.places, request.file)
    _set(tree, request.values)
    return tree, chosen


@functools.lru_cache(maxsize=32)
def _of_shipped_files(
    primary: str, choices: tuple[tuple[str, str | tuple[str, ...] | None], ...], places: tuple[Place, ...]
) -> tuple[DictConfig, Mapping[str, str]]:
    """Return what files that ship compose to, to be copied: the points of a sweep differ in values only, most often.

    Hydra takes a tenth of a second, and these files do not change while a process runs, as the user's own may.
    """
    listed = {group: list(name) if isinstance(name, tuple) else name for group, name in choices}
    return _of_files(primary, listed, places)


def _of_files(
    primary: str, chosen: Choices, places: Sequence[Place], file: YamlFile | None = None
) -> tuple[DictConfig, Mapping[str, str]]:
    """Return the tree of the files alone, and which were chosen.

    Args:
        primary: name of the primary config.
        chosen: group -> names of its files.
        places: folders that are searched.
        file: what a run starts from instead, if there is such a file.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from trainer.config.register import mutable_twin
    from trainer.config.source import ONLY_CHOICES, hydra_compose

    first = hydra_compose(primary, {} if file else chosen, places)
    # A primary config of the user's own may do without the schema.
    layers: list[Any] = [OmegaConf.structured(mutable_twin(TridentConfig)), first.tree]
    choices = first.choices
    if file is not None:
        on_top = hydra_compose(ONLY_CHOICES, chosen, places)
        layers += [_start(file, places), on_top.tree]
        choices = on_top.choices
    try:
        return cast("DictConfig", OmegaConf.merge(*layers)), choices
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"the config files must compose, but {one_line(error)}") from None


def _order(request: Request) -> list[str]:
    """Return the config paths of the files that Hydra merges on top of each other, and of `config=FILE`."""
    from trainer.config.source import ONLY_CHOICES, merge_order

    return merge_order(ONLY_CHOICES if request.file else request.primary, request.choices, request.places)


def _set(tree: DictConfig, values: Mapping[str, Any]) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for name, value in values.items():
        try:
            OmegaConf.update(tree, name, value, merge=False)
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{name} cannot be {value!r}: {one_line(error)}") from None


def _written(tree: DictConfig) -> dict[str, object]:
    """Return dotted key -> plain value, with interpolations as they were written."""
    from omegaconf import OmegaConf

    from trainer.config.resolving import as_written

    written = cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False))
    unresolved: dict[str, object] = {}
    for key in KEYS:
        unresolved[key] = as_written(plain(functools.reduce(getitem, key.split("."), written)))
    return unresolved


def _start(file: YamlFile, places: Sequence[Place]) -> DictConfig:
    """Return the tree that a run starts from with `config=FILE`: checked, and with a run_dir that follows the name."""
    from trainer.config.resolving import as_tree

    check_file(file, CONFIG, places)
    tree = dict(file.tree)
    name, run_dir = tree.get("name"), tree.get("run_dir")
    if isinstance(name, str) and isinstance(run_dir, str) and run_dir.endswith(f"/{name}") and "${" not in name:
        # The folder follows the name, so that `name=other` alone makes it another run.
        tree["run_dir"] = run_dir.removesuffix(name) + "${name}"
    if isinstance(logging := tree.get("logging"), Mapping):
        # It is a run of its own in wandb, too.
        tree["logging"] = {key: value for key, value in logging.items() if key != "wandb_run_id"}
    return as_tree(tree, file.name)


def composition(overrides: Sequence[str]) -> Composition:
    """Compose as `compose` does, and say where every value comes from.

    Raises:
        ConfigError: as `compose`.
    """
    from trainer.config.resolving import resolved

    request = read_request(overrides)
    if request.problems:
        raise ConfigError(request.problems)
    if request.settled is not None:
        told = {key: plain(value) for key, value in flatten(request.settled).items()} | request.values
        return Composition(build(told), request, {}, told)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tree, choices = _compose(request)
        before = _written(tree)
        keeps_off = "logging" in request.choices and tree.logging.wandb.value in ("offline", "disabled")
        decided = {name: literal(value) for name, value in values_in(os.environ, request.values, keeps_off).items()}
        _set(tree, decided)
        values = {key: plain(value) for key, value in resolved(tree, choices).items()}
    # Hydra warns, for example, of a key that a file calls deprecated.
    for text in {str(one.message): None for one in said}:
        warn(text)
    values["run_dir"] = folder_in_sweep(str(values["run_dir"]), os.environ)
    values |= _length(request.values)
    order = _order(request) if values[PATH] is not None or choices.get("model") == CHOICE else []
    found, taken = filled(values, own_keys(request, order), FILE in order)
    written = {**_written(tree), **{key: value for key, value in found.items() if value != values[key]}}
    of_environment = {name: before[name] for name in decided}
    return Composition(build(found), request, choices, written, of_environment, taken)


def _length(words: Mapping[str, object]) -> dict[str, object]:
    """Return what a word about the run's length makes of the other key: files that say it in the other way give in."""
    default = TridentConfig().train
    if words.get("train.epochs") is not None and "train.steps" not in words:
        return {"train.steps": default.steps}
    if "train.steps" in words and "train.epochs" not in words:
        return {"train.epochs": default.epochs}
    return {}


def compose(overrides: Sequence[str]) -> TridentConfig:
    """Compose `conf/train.yaml`, or the user's own primary config, with wandb's variables and then overrides on top.

    Args:
        overrides: words such as `model=gpt2_124m` (a file of a group), `optimizer.lr=1e-4` (a key), `config=FILE` (what
            to start from) or `--config-dir DIR` (where else to look). Where the same thing is given twice, the later
            word wins. A stray `--local_rank=N` is ignored.

    Raises:
        ConfigError: every override that cannot be used, each with what may have been meant. Rules between keys are
            the business of `validate`.
    """
    return composition(overrides).config


def recompose(config: TridentConfig, overrides: Sequence[str], may_change: Collection[str]) -> TridentConfig:
    """Return a finished config with overrides on top: a key sets itself, a group all keys that the group has.

    Args:
        config: the config of an earlier run.
        overrides: words as for `compose`.
        may_change: groups, and single keys, that the words may name.

    Raises:
        ConfigError: every override that cannot be used, or that names something else.
    """
    from trainer.config.resolving import resolved

    request = read_request(overrides)
    problems = list(request.problems)
    for name in (*([CONFIG] if request.file else []), *request.choices, *request.values):
        if name not in may_change and name.partition(".")[0] not in may_change:
            problems.append(f"'{name}' cannot be changed here; only {joined(may_change, 'and')} can")
    for name, value in request.values.items():
        if "${" in str(value):
            problems.append(f"{name} must be a value here, but is {value!r}")
    if problems:
        raise ConfigError(problems)
    values = {key: plain(value) for key, value in resolved(*_compose(request)).items()}
    changed = {key: values[key] for key in values if key in request.values or key.partition(".")[0] in request.choices}
    return build({**{key: plain(value) for key, value in flatten(config).items()}, **changed})
