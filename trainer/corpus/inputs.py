"""The files that a source names: sorted, each once, with what changes when one of them does. No torch."""

from __future__ import annotations

import glob
import os
import stat
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from trainer.config.places import local_path
from trainer.config.schema import DataConfig, DataSource
from trainer.corpus.units import Compression, InputFile, Kind
from trainer.corpus.wording import reason
from trainer.errors import DataError

_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    *("encodings", "pydoc_data"),
}
"""Files that hold no Python written by a person: installed packages, tests, character tables, generated help texts."""
_KINDS = {".txt": Kind.text, ".jsonl": Kind.json_lines, ".parquet": Kind.parquet}
_COMPRESSIONS = {".gz": Compression.gz}


def input_files(data: DataConfig) -> list[InputFile]:
    """Return the files of a source of text or records, sorted by their absolute paths, each once.

    A data set that the `datasets` library reads is one file of kind `hub`, with its name as path.

    Raises:
        DataError: no file is named, a name matches no file, or a file is of an unknown kind.
    """
    if data.source is DataSource.hub:
        return [InputFile(str(data.hub_path), None, "\n".join(identity(data)), Kind.hub)]
    if data.source is DataSource.stdlib:
        return [_input_file(str(path), _stat(path), Kind.text) for path in stdlib_files()]
    if not data.files:
        raise DataError("data.source=files needs at least one path or glob in data.files, but it is empty")
    found: dict[str, tuple[str, os.stat_result]] = {}
    folders: dict[str, str] = {}
    for pattern in data.files:
        for path, real, facts in _matches(pattern, folders):
            # A file that is named twice, or linked, would be trained on twice.
            known = found.get(real)
            if known is None or _order(path) < _order(known[0]):
                found[real] = (path, facts)
    return [_input_file(path, facts, *_form(path)) for path, facts in sorted(found.values(), key=_first_by_order)]


def identity(data: DataConfig) -> list[str]:
    """Return the values that decide the documents of a text source: part of the fingerprint of its cached tokens.

    Raises:
        DataError: a file is missing.
    """
    facts = [data.text_key]
    if data.source is not DataSource.hub:
        return [*facts, *(file.identity for file in input_files(data))]
    facts += [str(data.hub_path), str(data.hub_name), data.hub_split]
    folder = hub_folder(data)
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    return [*facts, *(file_identity(path) for path in paths)]


def file_identity(path: Path) -> str:
    """Return a text that changes when the file does.

    Raises:
        DataError: the file is gone.
    """
    return _identity(str(path.absolute()), _stat(path))


def hub_folder(data: DataConfig) -> Path | None:
    """Return the folder of this machine that `data.hub_path` names; None if it names a data set elsewhere."""
    path = local_path(str(data.hub_path), "data.hub_path")
    return Path(path) if os.path.isdir(path) else None


def stdlib_files() -> list[Path]:
    """Return the library modules of the running Python, sorted, without its tests."""
    root = sysconfig.get_paths()["stdlib"]
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        # Installed packages are skipped: walking through them would take seconds.
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    # Distributions leave links to configuration that may not be installed.
    return sorted(path for path in found if path.is_file())


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{path} must be a file that can be read, but is not: {reason(error)}") from error


def _identity(path: str, facts: os.stat_result) -> str:
    return f"{path}:{facts.st_size}:{facts.st_mtime_ns}"


def _input_file(path: str, facts: os.stat_result, kind: Kind, compression: Compression = Compression.none) -> InputFile:
    return InputFile(path, facts.st_size, _identity(path, facts), kind, compression)


def _order(path: str) -> list[str]:
    """Return what paths are sorted by: the names of their folders, one after the other."""
    return path.split("/")


def _first_by_order(found: tuple[str, os.stat_result]) -> list[str]:
    return _order(found[0])


def _form(path: str) -> tuple[Kind, Compression]:
    name, suffix = os.path.splitext(path)
    compression = _COMPRESSIONS.get(suffix, Compression.none)
    if compression is not Compression.none:
        suffix = os.path.splitext(name)[1]
    kind = _KINDS.get(suffix)
    if kind is None or (kind is Kind.parquet and compression is not Compression.none):
        raise DataError(f"data.files must end in .txt, .jsonl, .parquet, .txt.gz or .jsonl.gz, but {path} does not")
    return kind, compression


def _matches(pattern: str, folders: dict[str, str]) -> Iterator[tuple[str, str, os.stat_result]]:
    """Yield the absolute path, the path without links, and the facts of each file that a name or glob matches.

    Args:
        pattern: the name or glob.
        folders: folders without links, by their names; filled here.
    """
    expanded = local_path(pattern, "data.files")
    # A name that exists is taken literally, even if it holds [ or *.
    names = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
    folder = None
    found = False
    for name in names:
        try:
            # One call a file: there may be hundreds of thousands.
            facts = os.lstat(name)
            is_link = stat.S_ISLNK(facts.st_mode)
            facts = os.stat(name) if is_link else facts
        except OSError:
            continue
        if stat.S_ISREG(facts.st_mode):
            found = True
            path = os.fspath(Path(name).absolute())
            yield path, os.path.realpath(path) if is_link else _without_links(path, folders), facts
        elif stat.S_ISDIR(facts.st_mode):
            folder = folder or name
    if not found and folder is not None:
        raise DataError(
            f"data.files must name files, but {pattern!r} matches only a folder; name what is in it, for example "
            f"data.files=[{folder.rstrip('/')}/*.txt]"
        )
    if not found:
        raise DataError(f"data.files must name files that exist, but {pattern!r} matches none")


def _without_links(path: str, folders: dict[str, str]) -> str:
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)
