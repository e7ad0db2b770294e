"""Composition by Hydra: from a primary config and choices to one tree, out of the searched folders. No torch.

The folders are one config source for Hydra, so that each file can be checked, with its line, before it is composed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.config_file import check_file, cycle, package
from trainer.config.keys import GROUPS
from trainer.config.register import register
from trainer.config.resolving import as_tree
from trainer.config.searched import ALL_GROUPS, Place, exists, find, shown, spelled
from trainer.config.words import EXPERIMENT, quoted
from trainer.config.yaml_file import one_line, read_yaml
from trainer.errors import ConfigError

Choices = Mapping[str, str | Sequence[str] | None]
"""Group -> names of its files; None leaves the group out."""
ONLY_CHOICES = "trident_choices"
"""Name of a primary config that holds nothing but the choices."""


@dataclass(frozen=True)
class Composed:
    """Result of Hydra's composition."""

    tree: DictConfig
    """Composed tree, with interpolations as they were written."""
    choices: Mapping[str, str]
    """Group -> name of its file, or several with commas; those that recipes picked are among them."""


class _Source(ConfigSource):
    """All searched folders as one config source for Hydra."""

    def __init__(self, places: Sequence[Place]) -> None:
        super().__init__("main", "trident://")
        self._places = tuple(places)

    @staticmethod
    def scheme() -> str:
        return "trident"

    def load_config(self, config_path: str) -> ConfigResult:
        hit = find(self._places, config_path.removesuffix(".yaml"))
        if hit is None:
            return self._spelled(config_path)
        file = read_yaml(hit[0])
        check_file(file, config_path, self._places)
        config = as_tree(file.tree, file.name)
        header = {"package": package(file, config_path.rpartition("/")[0].partition("/")[0]) or "_global_"}
        return ConfigResult("main", "trident://", config, cast(dict[str, str | None], header))

    @staticmethod
    def _spelled(config_path: str) -> ConfigResult:
        keys = spelled(config_path)
        assert keys is not None, "Hydra asks is_config first"
        header: dict[str, str | None] = {"package": config_path.partition("/")[0]}
        return ConfigResult("main", "trident://", OmegaConf.create(keys), header)

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path.partition("/")[0] in ALL_GROUPS

    def is_config(self, config_path: str) -> bool:
        return exists(self._places, config_path.removesuffix(".yaml"))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return sorted({name for place in self._places for name in place.names(config_path)})


def _loader(places: Sequence[Place]) -> ConfigLoaderImpl:
    # These lines do what hydra.initialize and hydra.compose do, without their global state and with our own source.
    Plugins.instance()
    setup_globals()
    register()
    choices = [*({group: None} for group in GROUPS), "_self_", {EXPERIMENT: None}]
    ConfigStore.instance().store(name=ONLY_CHOICES, node={"defaults": choices})
    search = ConfigSearchPathImpl()
    search.append("hydra", "pkg://hydra.conf")
    search.append("schema", "structured://")
    loader = ConfigLoaderImpl(search)
    loader.repository.sources.insert(1, _Source(places))
    return loader


def hydra_compose(primary: str, choices: Choices, places: Sequence[Place]) -> Composed:
    """Compose a primary config with the chosen files.

    Raises:
        ConfigError: everything that is wrong with the first file that cannot be used.
    """
    from hydra import version

    version.setbase("1.3")
    words = [f"{group}={_value(value)}" for group, value in choices.items()]
    loader = _loader(places)
    try:
        tree = loader.load_configuration(primary, words, RunMode.RUN)
    except RecursionError:
        starts = [f"{EXPERIMENT}/{choices.get(EXPERIMENT)}", primary]
        circle = next(filter(None, (cycle(path, places) for path in starts)), [])
        raise ConfigError(f"files must not include each other in a circle, but do: {' -> '.join(circle)}") from None
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
        raise ConfigError(f"the config files must compose, but {_in_our_words(error, places)}") from None
    chosen = OmegaConf.to_container(tree.hydra.runtime.choices)
    names = {
        str(group): ",".join(name) if isinstance(name, list) else str(name)
        for group, name in cast(dict[str, str | list[str] | None], chosen).items()
        if name and group in ALL_GROUPS
    }
    # Hydra does not report several files of one group, so they are added here.
    names |= {group: ",".join(value) for group, value in choices.items() if isinstance(value, list)}
    OmegaConf.set_struct(tree, False)
    del tree["hydra"]
    return Composed(tree, names)


def merge_order(primary: str, choices: Choices, places: Sequence[Place]) -> list[str]:
    """Return the config paths of a config that composes, in the order in which they are merged: a later one wins."""
    words = [f"{group}={_value(value)}" for group, value in choices.items()]
    merged = _loader(places).compute_defaults_list(primary, words, RunMode.RUN).defaults
    paths = (str(one.config_path) for one in merged if one.config_path)
    return [path for path in paths if path.partition("/")[0] != "hydra" and path != "_dummy_empty_config_"]


def _value(value: str | Sequence[str] | None) -> str:
    if value is None:
        return "null"
    return quoted(value) if isinstance(value, str) else f"[{','.join(map(quoted, value))}]"


def _in_our_words(error: BaseException, places: Sequence[Place]) -> str:
    text = one_line(error.__cause__ or error)
    for path in {word.strip("'\":") for word in text.split() if "/" in word}:
        hit = find(places, path)
        if hit is not None:
            text = text.replace(f"'{path}'", f"'{shown(hit[0])}'")
    return text.removesuffix(".")
