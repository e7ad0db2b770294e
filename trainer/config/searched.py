"""Folders that config files are looked for in: the user's own first, then those that ship. Only names are read."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trainer
from trainer.config.keys import GROUPS
from trainer.config.layout_words import EXAMPLES, LAYOUT, spelled_layout
from trainer.config.places import absolute_path, local_path
from trainer.config.words import EXPERIMENT, SEARCHPATH
from trainer.errors import ConfigError

PRIMARY = "train"
"""conf/train.yaml: the table of contents."""
FOLDERS_VARIABLE = "TRIDENT_CONFIG_DIR"
"""Environment variable with config folders, separated by colons."""
BESIDE = "conf"
"""Folder that is looked for in the working directory."""
SHIPPED = "trident"
SCHEMA_NAME = "trident_schema"
"""First entry of the defaults list in conf/train.yaml."""
_ENDINGS = (".yaml", ".yml")
ALL_GROUPS = (*GROUPS, EXPERIMENT)


@dataclass(frozen=True)
class Place:
    """A folder that is searched."""

    folder: Path
    origin: str
    """The option, variable or file that named the folder."""
    group: str = ""
    """Set if the folder holds files of this group and not folders of groups."""

    def file(self, path: str) -> Path | None:
        """Return the file of a config path such as `model/gpt2_124m` or `train`, if it is here.

        Raises:
            ConfigError: there is something of that name, but no file that can be read.
        """
        inside = path
        if self.group:
            group, _, inside = path.partition("/")
            if group != self.group:
                return None
        for ending in (*_ENDINGS, ""):
            found = self.folder / f"{inside}{ending}"
            if ending == "" and not inside.endswith(_ENDINGS):
                continue
            if not os.path.lexists(found):
                continue
            if not found.is_file():
                what = "a folder" if found.is_dir() else "a link to nothing" if found.is_symlink() else "no file"
                raise ConfigError(f"{shown(found)} must be a YAML file, but is {what}")
            return found
        return None

    def names(self, group: str) -> Iterator[str]:
        """Yield the names of a group's files; names in subfolders come with their folder."""
        if self.group not in ("", group):
            return
        folder = self.folder if self.group else self.folder / group
        for path in sorted(folder.rglob("*")) if folder.is_dir() and not self.group else sorted(folder.glob("*")):
            if path.suffix in _ENDINGS and path.is_file():
                yield path.relative_to(folder).with_suffix("").as_posix()


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


def shown(path: Path) -> str:
    """Return a path as a person in the working directory would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def places(config_dirs: Sequence[str] = (), searchpath: Sequence[str] = ()) -> list[Place]:
    """Return the folders to search; the first folder that has a file wins.

    Args:
        config_dirs: folders of `--config-dir`.
        searchpath: folders of `hydra.searchpath`, also as `file://FOLDER` or `pkg://PACKAGE`.

    Raises:
        ConfigError: a folder that was named does not exist, or cannot be read.
    """
    found = [Place(_folder(name, "--config-dir"), "--config-dir") for name in config_dirs]
    found += [Place(_folder(name, SEARCHPATH), SEARCHPATH) for name in searchpath]
    found += [Place(_folder(name, FOLDERS_VARIABLE), FOLDERS_VARIABLE) for name in _named_by_environment()]
    return _without_repetition([*found, *_always()])


def options(found: Sequence[Place] | None = None) -> dict[str, list[str]]:
    """Return group -> names of its files, in the order of conf/train.yaml. Reads only file names.

    Layouts need no file; a few of their spellings are among the names.

    Args:
        found: folders to search; without it, those that the environment names and that exist.
    """
    if found is None:
        named = (absolute_path(name, FOLDERS_VARIABLE) for name in _named_by_environment())
        found = [*(Place(folder, FOLDERS_VARIABLE) for folder in named if folder.is_dir()), *_always()]
    names = {group: {name for place in found for name in place.names(group)} for group in ALL_GROUPS}
    names[LAYOUT] |= set(EXAMPLES)
    return {group: sorted(of_group) for group, of_group in names.items()}


def find(found: Sequence[Place], path: str) -> tuple[Path, Place] | None:
    """Return the file of a config path such as `model/gpt2_124m`, and where it is.

    Raises:
        ConfigError: there is something of that name, but no file.
    """
    for place in found:
        file = place.file(path)
        if file is not None and not (path == PRIMARY and place.origin == BESIDE and not _is_ours(file)):
            return file, place
    return None


def spelled(path: str) -> dict[str, object] | None:
    """Return the values of a config path such as `layout/tp4_pp2`, which needs no file, or None for other paths.

    Raises:
        ConfigError: see `spelled_layout`.
    """
    group, _, name = path.removesuffix(".yaml").partition("/")
    return spelled_layout(name) if group == LAYOUT else None


def exists(found: Sequence[Place], path: str) -> bool:
    """Return whether a config path can be composed: from a file, or without one.

    Raises:
        ConfigError: as `find` and `spelled`.
    """
    return find(found, path) is not None or spelled(path) is not None


def own_file(group: str, name: str) -> Place | None:
    """Return the place of a file that was chosen by its path, such as `experiment=./mine.yaml`; None if it is a name.

    Raises:
        ConfigError: it is a path, but there is no such file.
    """
    path = Path(local_path(name, group))
    if "/" in name and not path.exists() and path.with_name(f"{path.name}.yaml").is_file():
        path = path.with_name(f"{path.name}.yaml")
    if path.suffix not in _ENDINGS:
        return None
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{group}={name} must name a YAML file, but {shown(path.absolute())} {what}")
    return Place(path.absolute().parent, "the command line", group)


def _folder(name: str, origin: str) -> Path:
    scheme, _, rest = name.partition("://")
    if scheme == "pkg" and rest:
        return _package_folder(rest, origin)
    folder = absolute_path(rest if scheme == "file" and rest else name, origin)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ConfigError(f"{origin} must name a folder of config files, but {name} {what}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ConfigError(f"{origin} must name a folder that can be read, but {name} cannot")
    return folder


def _package_folder(name: str, origin: str) -> Path:
    try:
        spec = importlib.util.find_spec(name.replace("/", "."))
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ConfigError(f"{origin} must name a package that is installed, but pkg://{name} is not")
    return Path(folders[0])


def _named_by_environment() -> list[str]:
    return [name for name in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if name.strip()]


def _always() -> list[Place]:
    beside, shipped = Path.cwd() / BESIDE, Place(conf_folder(), SHIPPED)
    return _without_repetition([*([Place(beside, BESIDE)] if beside.is_dir() else []), shipped])


def _without_repetition(found: Sequence[Place]) -> list[Place]:
    unique: dict[Path, Place] = {}
    for place in found:
        # The shipped folder keeps its origin, even where it is also the conf of the working directory.
        real = place.folder.resolve()
        if real not in unique or place.origin == SHIPPED:
            unique[real] = place
    return list(unique.values())


def _is_ours(file: Path) -> bool:
    """Return whether a primary config is Trident's: another project's may stand in a folder of that name."""
    try:
        return SCHEMA_NAME in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
