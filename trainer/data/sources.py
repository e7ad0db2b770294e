"""Documents from where the user keeps them: Python's own library, files, or a Hugging Face data set. No torch."""

from __future__ import annotations

import glob
import gzip
import json
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from trainer.config.schema import DataConfig, DataSource
from trainer.errors import DataError

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_SUFFIXES = (".txt", ".jsonl", ".parquet")


def documents(config: DataConfig) -> Iterator[str]:
    """Yield the documents of a text source, in a fixed order; empty ones are left out.

    Raises:
        DataError: a file or data set is missing, unreadable, or not what it should be.
    """
    readers = {DataSource.stdlib: _stdlib, DataSource.files: _files, DataSource.hub: _hub}
    texts = (text for text in readers[config.source](config) if text.strip())
    return islice(texts, config.max_documents)


def identity(config: DataConfig) -> list[str]:
    """Return what decides the documents: part of the fingerprint under which they are cached.

    Raises:
        DataError: a file is missing.
    """
    if config.source is DataSource.hub:
        return [str(config.hub_path), str(config.hub_name), config.hub_split, config.text_key]
    if config.source is DataSource.stdlib:
        paths = stdlib_files()
    elif config.source is DataSource.megatron:
        from trainer.data.megatron import megatron_pairs

        paths = [path for pair in megatron_pairs(config) for path in pair]
    else:
        paths = input_files(config)
    facts = ((path, path.stat()) for path in paths)
    return [config.text_key, *(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in facts)]


def stdlib_files() -> list[Path]:
    """Return the running Python's own library modules, sorted, its tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = (p for p in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(p.relative_to(root).parts))
    return sorted(found)


def _stdlib(config: DataConfig) -> Iterator[str]:
    for path in stdlib_files():
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            # A few modules are in other encodings on purpose.
            continue


def input_files(config: DataConfig) -> list[Path]:
    """Return the files that `data.files` names, sorted, each once.

    Raises:
        DataError: nothing is named, a name matches nothing, or a file is of an unknown kind.
    """
    found: set[Path] = set()
    for pattern in config.files:
        matches = [Path(match) for match in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(f"data.files must name files that exist, but {pattern!r} matches none")
        found.update(files)
    if not found:
        raise DataError("data.source=files needs at least one path or glob in data.files, but it is empty")
    for path in sorted(found):
        if _kind(path) not in _SUFFIXES or (_kind(path) == ".parquet" and path.suffix == ".gz"):
            raise DataError(f"data.files must end in .txt, .jsonl, .parquet, .txt.gz or .jsonl.gz, but {path} does not")
    return sorted(found)


def _kind(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _files(config: DataConfig) -> Iterator[str]:
    for path in input_files(config):
        if _kind(path) == ".txt":
            yield _decoded(_content(path), path)
        elif _kind(path) == ".jsonl":
            yield from _jsonl(path, config.text_key)
        else:
            yield from _parquet(path, config.text_key)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"data.files must be readable, but {path} is not: {error}") from error


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data.files must be UTF-8, but {path} is not at byte {error.start}; convert it, for example with iconv"
        ) from error


def _jsonl(path: Path, key: str) -> Iterator[str]:
    for number, line in enumerate(_decoded(_content(path), path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"each line of {path} must be JSON, but line {number} is not: {error.msg}") from error
        text = record.get(key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            have = f"has {', '.join(sorted(record))}" if isinstance(record, dict) else "is no object"
            raise DataError(
                f"each line of {path} must be an object with the text in data.text_key={key}, but line {number} {have}"
            )
        yield text


def _parquet(path: Path, key: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"data.files must be readable, but {path} is no parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        if key not in names:
            raise DataError(f"{path} must have the column data.text_key={key}, but has {', '.join(names)}")
        for batch in file.iter_batches(columns=[key]):
            for text in batch.column(0).to_pylist():
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise DataError(f"column {key} of {path} must hold text, but holds {type(text).__name__}")
                yield text


def _hub(config: DataConfig) -> Iterator[str]:
    import datasets

    path = str(config.hub_path)
    try:
        if Path(path).is_dir() and any((Path(path) / n).exists() for n in ("state.json", "dataset_dict.json")):
            rows = datasets.load_from_disk(path)
            if isinstance(rows, datasets.DatasetDict):
                if config.hub_split not in rows:
                    raise DataError(f"data.hub_split must be one of {', '.join(rows)}, but is {config.hub_split}")
                rows = rows[config.hub_split]
        else:
            rows = datasets.load_dataset(path, config.hub_name, split=config.hub_split, streaming=True)
        for row in rows:
            if not isinstance(row.get(config.text_key), str):
                raise DataError(
                    f"{path} must have the text field data.text_key={config.text_key}, but has {', '.join(row)}"
                )
            yield row[config.text_key]
    except DataError:
        raise
    # The library raises whatever its transport raises.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"data.hub_path={path} must be a data set that can be read, but: {type(error).__name__}: {reason}",
            hints=["check the name and the network, or save it with save_to_disk and give the folder as data.hub_path"],
        ) from error
