"""The tokenizer that travels in a checkpoint, so that one that was copied alone can still write texts. No torch."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.manifest import FileFacts, Manifest, check_file, file_facts
from trainer.config.compose import differences, from_yaml
from trainer.config.places import BY_CONTENT
from trainer.config.schema import DataSource, TokenizerKind, TridentConfig
from trainer.config.schema_data import ID_FILES
from trainer.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from trainer.errors import CheckpointError, ConfigError, DataError, first_line
from trainer.files import write_atomically
from trainer.run_paths import CONFIG, TOKENIZER, RunPaths, run_of_checkpoint

_DECIDES = ("data.", "tokenizer.", "model.vocab_size")
"""Keys that decide a run's tokenizer."""
_PLACES = (*BY_CONTENT, "data.cache_dir")


def has_tokenizer(config: TridentConfig) -> bool:
    """Return whether the data of a run come with a tokenizer."""
    source = config.data.source
    if source in ID_FILES:
        return config.tokenizer.kind is TokenizerKind.pretrained
    return source is not DataSource.synthetic


def size_bytes_of(source: Path) -> int:
    """Return the size of a folder's files in bytes; 0 if there is none."""
    return sum(path.stat().st_size for path in _files(source))


def write_tokenizer(source: Path, checkpoint: Path, key: str = "run_dir") -> dict[str, FileFacts]:
    """Copy a run's tokenizer into an unfinished checkpoint; return size and hash of the files, by relative path.

    Raises:
        StorageError: it cannot be written.
    """
    return write_kept(source, checkpoint, TOKENIZER, key)


def write_kept(source: Path, checkpoint: Path, folder: str, key: str = "run_dir") -> dict[str, FileFacts]:
    """Copy a folder of small files into a folder of an unfinished checkpoint; otherwise as `write_tokenizer`."""
    written: dict[str, FileFacts] = {}
    for path in _files(source):
        name = f"{folder}/{path.relative_to(source).as_posix()}"
        write_atomically(checkpoint / name, path.read_bytes(), key)
        written[name] = file_facts(checkpoint / name)
    return written


def tokenizer_folder(checkpoint: Path, manifest: Manifest) -> Path | None:
    """Return a checkpoint's tokenizer: its own, or, if an earlier version saved it, the one in its run's folder.

    None if there is none, or only one that is not known to be this run's.

    Raises:
        CheckpointError: it has changed since it was saved, or the checkpoint's config cannot be read.
    """
    own = [name for name in manifest.files if name.startswith(f"{TOKENIZER}/")]
    for name in own:
        check_file(checkpoint / name, manifest.files[name])
    if own:
        return checkpoint / TOKENIZER
    run = run_of_checkpoint(checkpoint)
    config = saved_config(checkpoint / CONFIG)
    if run is None or not has_tokenizer(config) or not run.tokenizer.is_dir():
        return None
    return run.tokenizer if _is_of_this_run(run, config, manifest) else None


def _is_of_this_run(run: RunPaths, config: TridentConfig, manifest: Manifest) -> bool:
    try:
        changed = differences(saved_config(run.config), config)
    except CheckpointError:
        return False
    if any(key.startswith(_DECIDES) and key not in _PLACES for key in changed):
        return False
    tokenizer = load_tokenizer(run.tokenizer)
    of_that_kind = isinstance(tokenizer, ByteTokenizer) == (config.tokenizer.kind is TokenizerKind.bytes)
    return of_that_kind and fits(tokenizer, manifest)


def fits(tokenizer: Tokenizer, manifest: Manifest) -> bool:
    """Return whether the model of a checkpoint knows every id of a tokenizer."""
    return tokenizer.vocab_size <= manifest.vocab_size


def same_tokenizer(one: Path, other: Path) -> bool:
    """Return whether the tokenizer.json files of two folders are one tokenizer, however they are written.

    Raises:
        DataError: one cannot be read.
    """
    import tokenizers

    texts = []
    for folder in (one, other):
        try:
            found = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The library raises bare Exception.
        except Exception as error:
            raise DataError(f"{folder / 'tokenizer.json'} must be a tokenizer, but: {first_line(error)}") from error
        found.no_truncation()
        found.no_padding()
        texts.append(found.to_str())
    return bool(texts[0] == texts[1])


def saved_config(path: Path) -> TridentConfig:
    """Return the config in a run's folder or in a checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} must be a config that this version can read, but: {reason}") from error


def _files(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
