"""Documents from the user's sources: Python's own library, files, or a Hugging Face data set. No torch."""

from __future__ import annotations

import codecs
import glob
import gzip
import json
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from trainer.config.places import local_path
from trainer.config.schema import DataConfig, DataSource, RecordKind
from trainer.corpus.hub_split import sliced_parts
from trainer.corpus.wording import listed, reason
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
_SUFFIXES = (".txt", ".jsonl", ".parquet")
_SAVED_MARKS = ("state.json", "dataset_dict.json")
_PARQUET_ROWS = 1024
"""Number of rows held in memory at once."""


def documents(config: DataConfig) -> Iterator[str]:
    """Yield the documents of a text source, in a fixed order; empty and null ones are left out.

    Raises:
        DataError: a file or data set is missing, unreadable, or of the wrong form.
    """
    if config.records is not RecordKind.text:
        raise DataError(f"data.records must be text where documents are read, but is {config.records.value}")
    readers = {DataSource.stdlib: _stdlib, DataSource.files: _files, DataSource.hub: _hub_texts}
    texts = (text for text in readers[config.source](config) if text.strip())
    return islice(texts, config.max_documents)


@dataclass(frozen=True)
class Record:
    """One object of a source that holds objects."""

    origin: str
    """Its place, as errors name it: line 3 of x.jsonl."""
    fields: Mapping[str, Any]


def records(config: DataConfig, keys: Mapping[str, str]) -> Iterator[Record]:
    """Yield the objects of a source, in a fixed order; empty lines are left out.

    Args:
        config: source and files.
        keys: key of the config -> name of a field that every object must have; only columns are checked here.

    Raises:
        DataError: a file or data set is missing, unreadable, or of the wrong form.
    """
    found = _hub_records(config) if config.source is DataSource.hub else _file_records(config, keys)
    return islice(found, config.max_documents)


def _file_records(config: DataConfig, keys: Mapping[str, str]) -> Iterator[Record]:
    for path in input_files(config):
        if _kind(path) == ".txt":
            raise DataError(
                f"data.files must be .jsonl, .jsonl.gz or .parquet for data.records={config.records.value}, but {path} "
                "is text"
            )
        if _kind(path) == ".parquet":
            rows: Iterable[tuple[int, object]] = enumerate(_parquet(path, keys), start=1)
        else:
            rows = _json_lines(path)
        what = "row" if _kind(path) == ".parquet" else "line"
        for number, row in rows:
            if not isinstance(row, Mapping):
                raise DataError(f"{what} {number} of {path} must be an object, but is {type(row).__name__}")
            yield Record(f"{what} {number} of {path}", row)


def _hub_records(config: DataConfig) -> Iterator[Record]:
    for number, row in enumerate(_hub(config), start=1):
        yield Record(f"row {number} of data.hub_path={config.hub_path}", row)


def identity(config: DataConfig) -> list[str]:
    """Return the values that decide the documents of a text source: part of the fingerprint of its cached tokens.

    Raises:
        DataError: a file is missing.
    """
    facts = [config.text_key]
    if config.source is DataSource.hub:
        facts += [str(config.hub_path), str(config.hub_name), config.hub_split]
        folder = _hub_folder(config)
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    elif config.source is DataSource.stdlib:
        paths = stdlib_files()
    else:
        paths = input_files(config)
    return [*facts, *(file_identity(path) for path in paths)]


def file_identity(path: Path) -> str:
    """Return a text that changes when the file does.

    Raises:
        DataError: the file is gone.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} must be a file that can be read, but is not: {reason(error)}") from error
    return f"{path.absolute()}:{stat.st_size}:{stat.st_mtime_ns}"


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


def _stdlib(config: DataConfig) -> Iterator[str]:
    for path in stdlib_files():
        with _readable(path, "data.source=stdlib: library modules") as file:
            content = file.read()
        try:
            yield content.decode("utf-8")
        except UnicodeDecodeError:
            # A few modules are in other encodings on purpose.
            continue


def input_files(config: DataConfig) -> list[Path]:
    """Return the files that `data.files` names, sorted by their absolute paths, each once.

    Raises:
        DataError: no file is named, a name matches no file, or a file is of an unknown kind.
    """
    if not config.files:
        raise DataError("data.source=files needs at least one path or glob in data.files, but it is empty")
    found: dict[Path, Path] = {}
    for pattern in config.files:
        for path in _matches(pattern):
            # A file that is named twice, or linked, would be trained on twice.
            real = path.resolve()
            found[real] = min(path, found.get(real, path))
    for path in sorted(found.values()):
        if _kind(path) not in _SUFFIXES or (_kind(path) == ".parquet" and path.suffix == ".gz"):
            raise DataError(f"data.files must end in .txt, .jsonl, .parquet, .txt.gz or .jsonl.gz, but {path} does not")
    return sorted(found.values())


def _matches(pattern: str) -> list[Path]:
    expanded = local_path(pattern, "data.files")
    # A name that exists is taken literally, even if it holds [ or *.
    names = [expanded] if os.path.exists(expanded) else glob.glob(expanded, recursive=True)
    files = [Path(name).absolute() for name in names if os.path.isfile(name)]
    folder = next((name for name in names if os.path.isdir(name)), None)
    if not files and folder is not None:
        raise DataError(
            f"data.files must name files, but {pattern!r} matches only a folder; name what is in it, for example "
            f"data.files=[{folder.rstrip('/')}/*.txt]"
        )
    if not files:
        raise DataError(f"data.files must name files that exist, but {pattern!r} matches none")
    return files


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _files(config: DataConfig) -> Iterator[str]:
    for path in input_files(config):
        if _kind(path) == ".txt":
            yield _whole_text(path)
        elif _kind(path) == ".jsonl":
            texts = (_text_of(content, config.text_key, path, number) for number, content in _json_lines(path))
            yield from (text for text in texts if text is not None)
        else:
            key = config.text_key
            rows = _parquet(path, {"data.text_key": key}, [key])
            yield from _column((row[key] for row in rows), path, key)


@contextmanager
def _readable(path: Path, what: str) -> Iterator[IO[bytes]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(IO[bytes], file)
    # gzip raises any of the three, depending on where the damage is.
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{what} must be readable, but {path} is not: {reason(error)}") from error


def _whole_text(path: Path) -> str:
    with _readable(path, "data.files") as file:
        content = file.read()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, f"at byte {error.start}") from error


def _not_utf8(path: Path, where: str) -> DataError:
    return DataError(f"data.files must be UTF-8, but {path} is not {where}; convert it, for example with iconv")


def _json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """Yield number and content of each line that is not empty."""
    with _readable(path, "data.files") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip()
            if not content:
                continue
            try:
                held = json.loads(content.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise _not_utf8(path, f"in line {number}") from error
            # Numbers of thousands of digits and very deep nesting have errors of their own.
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"each line of data.files must be JSON, but line {number} of {path} is not: {reason(error)}"
                ) from error
            yield number, held


def _text_of(record: object, key: str, path: Path, number: int) -> str | None:
    if isinstance(record, dict):
        text = record.get(key, record)
        if isinstance(text, str | None):
            return text
        have = f"has {type(record[key]).__name__} there" if key in record else f"has the keys {listed(sorted(record))}"
    else:
        have = f"is {type(record).__name__}, no object"
    raise DataError(
        f"each line of {path} must be an object with the text in data.text_key={key}, but line {number} {have}"
    )


def _parquet(path: Path, keys: Mapping[str, str], columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that has the columns of these keys; of some columns alone, where they are given."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for key, name in keys.items():
                if name not in names:
                    raise DataError(f"{path} must have the column {key}={name}, but has {listed(names)}")
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.files must be readable, but {path} is no good parquet file: {reason(error)}") from error


def _column(values: Iterable[object], path: Path, key: str) -> Iterator[str]:
    for text in values:
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise DataError(f"data.text_key={key} must be a column of text in {path}, but holds {type(text).__name__}")


def _hub_texts(config: DataConfig) -> Iterator[str]:
    path, key = str(config.hub_path), config.text_key
    for row in _hub(config):
        if key in row and isinstance(row[key], str | None):
            if row[key] is not None:
                yield row[key]
            continue
        have = f"holds {type(row[key]).__name__} there" if key in row else f"has {listed(row)}"
        raise DataError(f"data.hub_path={path} must have the text field data.text_key={key}, but {have}")


def _hub(config: DataConfig) -> Iterator[dict[str, Any]]:
    path = str(config.hub_path)
    try:
        yield from _hub_rows(config)
    except DataError:
        raise
    # The library raises whatever its transport raises.
    except Exception as error:
        raise DataError(
            f"data.hub_path={path} must be a data set that can be read, but: {type(error).__name__}: {reason(error)}",
            hints=["check the name and the network, or save it with save_to_disk and give the folder as data.hub_path"],
        ) from error


def _hub_rows(config: DataConfig) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set, or of the parts of it that `data.hub_split` names."""
    parts = sliced_parts(config.hub_split)
    if not parts:
        yield from _split_rows(config, config.hub_split)
    for part in parts:
        first, last = part.rows(lambda part=part: _count(config, part.split))  # type: ignore[misc]
        yield from islice(_split_rows(config, part.split), first, last)


def _split_rows(config: DataConfig, split: str) -> Iterable[dict[str, Any]]:
    """Open a split; a data set that `save_to_disk` wrote without splits has only itself."""
    import datasets

    folder = _hub_folder(config)
    if folder is None or not any((folder / mark).exists() for mark in _SAVED_MARKS):
        path = str(folder or config.hub_path)
        opened: Iterable[dict[str, Any]] = datasets.load_dataset(path, config.hub_name, split=split, streaming=True)
        return opened
    rows = datasets.load_from_disk(str(folder))
    if isinstance(rows, datasets.DatasetDict):
        if split not in rows:
            raise DataError(f"data.hub_split must be one of {listed(rows)}, but is {split}")
        rows = rows[split]
    chosen: Iterable[dict[str, Any]] = rows
    return chosen


def _count(config: DataConfig, split: str) -> int:
    """Return the number of rows of a split: from the data set's description, or counted if it lies on this machine."""
    rows = _split_rows(config, split)
    if isinstance(rows, Sized):
        return len(rows)
    told = getattr(getattr(rows, "info", None), "splits", None) or {}
    if split in told and told[split].num_examples:
        return int(told[split].num_examples)
    if _hub_folder(config) is None:
        raise DataError(
            f"data.hub_split={config.hub_split} needs the number of rows of {split}, which {config.hub_path} does not "
            f"tell; count in rows ({split}[:1000]), or set data.max_documents"
        )
    return sum(1 for _ in rows)


def _hub_folder(config: DataConfig) -> Path | None:
    path = local_path(str(config.hub_path), "data.hub_path")
    return Path(path) if os.path.isdir(path) else None
