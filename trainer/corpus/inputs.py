"""The files that a source names: sorted, each once, with what changes when one of them does. No torch."""

from __future__ import annotations

import glob
import json
import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from trainer.config.places import local_path
from trainer.config.schema import DataConfig, DataSource
from trainer.corpus.addresses import is_address, listed_address
from trainer.corpus.json_values import holds_lines
from trainer.corpus.units import UNIT_BYTES, Compression, InputFile, Kind
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
_KINDS = {
    ".txt": Kind.text,
    ".jsonl": Kind.json_lines,
    ".ndjson": Kind.json_lines,
    ".json": Kind.json,
    ".csv": Kind.csv,
    ".tsv": Kind.tsv,
    ".parquet": Kind.parquet,
    ".arrow": Kind.arrow,
    ".tar": Kind.tar,
}
_COMPRESSIONS = {
    ".gz": Compression.gz,
    ".zst": Compression.zst,
    ".bz2": Compression.bz2,
    ".xz": Compression.xz,
}
_SAVED, _SPLITS = "state.json", "dataset_dict.json"
"""Files of a folder that `save_to_disk` of the `datasets` library wrote: one table, or several splits."""
_PREPARED = "manifest.json"
_PREPARED_KEYS = {"format_version", "parts", "sizes", "inputs"}
"""Description of a folder of tokens that `trident data` made, and keys that it has."""
_LATER = ("document_separator", "text_join")
"""Keys below `data` that decide what a document is, besides data.text_key."""
_TARS = {".tgz": ".tar.gz", ".tzst": ".tar.zst", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}
"""Suffix -> what it is short for."""
_Found = dict[str, tuple[str, int | None, str]]
"""Path without links -> (path, size, identity)."""


def input_files(data: DataConfig) -> list[InputFile]:
    """Return the files of a source of text or records, sorted by their absolute paths, each once.

    A data set that the `datasets` library reads is one file of kind `hub`, with its name as path.

    Raises:
        DataError: no file is named, a name matches no file, or a file is of an unknown kind.
    """
    if data.source is DataSource.hub:
        return [InputFile(str(data.hub_path), None, "\n".join(identity(data)), Kind.hub)]
    if data.source is DataSource.stdlib:
        return [_library_file(path) for path in stdlib_files()]
    if not data.files:
        raise DataError("data.source=files needs at least one path or glob in data.files, but it is empty")
    found: _Found = {}
    folders: dict[str, str] = {}
    for pattern in data.files:
        for real, named in (_far(pattern) if is_address(pattern) else _near(pattern, folders)).items():
            # A file that is named twice, or linked, would be trained on twice.
            if real not in found or _order(named[0]) < _order(found[real][0]):
                found[real] = named
    files = sorted(found.values(), key=lambda named: _order(named[0]))
    return [_entered(InputFile(path, size, mark, *_form(path))) for path, size, mark in files]


def identity(data: DataConfig) -> list[str]:
    """Return the values that decide the documents of a text source: part of the fingerprint of its cached tokens.

    Raises:
        DataError: a file is missing.
    """
    facts = [data.text_key]
    # Keys that came later are here only where they are set: the caches of earlier versions stay good.
    facts += [f"{name}={value}" for name in _LATER if (value := getattr(data, name)) is not None]
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


def _library_file(path: Path) -> InputFile:
    facts = _stat(path)
    return InputFile(str(path), facts.st_size, _identity(str(path), facts), Kind.text)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"{path} must be a file or folder that can be read, but is not: {reason(error)}")


def _identity(path: str, facts: os.stat_result) -> str:
    return f"{path}:{facts.st_size}:{facts.st_mtime_ns}"


def _order(path: str) -> list[str]:
    """Return what paths are sorted by: the names of their folders, one after the other."""
    return path.split("/")


def _suffixes(path: str) -> tuple[str, str]:
    """Return the suffix of the content and that of the compression, in small letters."""
    name, suffix = os.path.splitext(path.split("?")[0] if is_address(path) else path)
    suffix = suffix.lower()
    if suffix in _TARS:
        name, suffix = os.path.splitext(name + _TARS[suffix])
    if suffix not in _COMPRESSIONS:
        return suffix, ""
    return os.path.splitext(name)[1].lower(), suffix


def _form(path: str) -> tuple[Kind, Compression]:
    suffix, packed = _suffixes(path)
    if suffix not in _KINDS:
        *names, last = _KINDS
        raise DataError(
            f"data.files must end in {', '.join(names)} or {last}, plain or with .gz, .zst, .bz2 or .xz behind it, but "
            f"{path} does not"
        )
    return _KINDS[suffix], _COMPRESSIONS.get(packed, Compression.none)


def _entered(file: InputFile) -> InputFile:
    """Return the file; a large one of a line a record under the name .json as one of lines, which can be divided."""
    is_large = file.size is not None and file.size > UNIT_BYTES
    if file.kind is Kind.json and is_large and file.compression is Compression.none and holds_lines(file):
        return replace(file, kind=Kind.json_lines)
    return file


def _far(pattern: str) -> _Found:
    found = listed_address(pattern)
    if found is None:
        raise DataError(f"data.files must name files that exist, but {pattern!r} matches none")
    if set(found) != {pattern}:
        found = {address: facts for address, facts in found.items() if _is_readable(address)}
    return {address: (address, *facts) for address, facts in found.items()}


def _near(pattern: str, folders: dict[str, str]) -> _Found:
    """Return the files that a path or glob matches, and those in the folders that it matches.

    Args:
        pattern: the path or glob.
        folders: folders without links, by their names; filled here.
    """
    expanded = local_path(pattern, "data.files")
    # A name that exists is taken literally, even if it holds [ or *.
    names = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
    found: _Found = {}
    inside: list[str] = []
    for name in names:
        if not _add(found, name, folders) and os.path.isdir(name):
            inside.append(name)
    # A glob that matches files, too, means the files.
    for folder in inside if not found else ():
        for path in _files_in(folder):
            _add(found, path, folders)
    if not found and inside:
        raise DataError(
            f"data.files must name files, but {pattern!r} matches only folders without one that ends in "
            f"{', '.join(_KINDS)}"
        )
    if not found and names:
        raise DataError(f"data.files must name files, but {pattern!r} matches only pipes, sockets or devices")
    if not found:
        raise DataError(f"data.files must name files that exist, but {pattern!r} matches none")
    return found


def _add(found: _Found, name: str, folders: dict[str, str]) -> bool:
    """Add a file to what was found; return False if it is no file.

    Raises:
        DataError: it cannot be looked at, as a link that leads nowhere.
    """
    try:
        # One call a file: there may be hundreds of thousands.
        facts = os.lstat(name)
        is_link = stat.S_ISLNK(facts.st_mode)
        facts = os.stat(name) if is_link else facts
    except OSError as error:
        raise _unreadable(name, error) from error
    if not stat.S_ISREG(facts.st_mode):
        return False
    path = os.fspath(Path(name).absolute())
    real = os.path.realpath(path) if is_link else _without_links(path, folders)
    known = found.get(real)
    if known is None or _order(path) < _order(known[0]):
        found[real] = (path, facts.st_size, _identity(path, facts))
    return True


def _files_in(root: str) -> Iterator[str]:
    """Yield the files below a folder that can be read, without hidden ones and those that `trident data` made.

    Raises:
        DataError: it is a data set of several splits, or a folder in it cannot be read or is a link to one around it.
    """
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (os.path.join(folder, name) for name in folders):
            if os.path.islink(path) and (os.path.realpath(folder) + "/").startswith(os.path.realpath(path) + "/"):
                raise DataError(f"data.files must name folders that end, but {path} is a link to one that it is in")
        if _SPLITS in names:
            raise DataError(
                f"data.files must name one split of a data set, but {folder} holds several; name one of its folders, "
                f"or use data=hub data.hub_path={folder} with data.hub_split"
            )
        if _PREPARED in names and _is_prepared(os.path.join(folder, _PREPARED)):
            # A cache may lie below the data: what is made of the data is none of them.
            folders.clear()
            continue
        if _SAVED in names:
            # Other tables beside those are caches of the library.
            yield from (os.path.join(folder, name) for name in _saved_tables(os.path.join(folder, _SAVED)))
            continue
        yield from (os.path.join(folder, name) for name in names if _is_readable(name))


def _is_prepared(path: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:
            held = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and held.keys() >= _PREPARED_KEYS


def _raise_unreadable(error: OSError) -> None:
    # What is in such a folder would be left out without a word.
    raise _unreadable(str(error.filename), error) from error


def _is_readable(path: str) -> bool:
    return not path.rsplit("/", 1)[-1].startswith(".") and _suffixes(path)[0] in _KINDS


def _saved_tables(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [str(table["filename"]) for table in json.load(file)["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} must describe a data set that save_to_disk wrote, but does not: {reason(error)}"
        ) from error


def _without_links(path: str, folders: dict[str, str]) -> str:
    folder, name = os.path.split(path)
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    return os.path.join(folders[folder], name)
