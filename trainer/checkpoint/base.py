"""The model that a checkpoint of adapters leaves out: where it is, and whether it still is what it was. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.checkpoint.kept_tokenizer import saved_config
from trainer.checkpoint.manifest import MANIFEST, Base, Manifest, check_content, check_file, read_manifest
from trainer.checkpoint.origin import Found
from trainer.checkpoint.store import find_checkpoint
from trainer.config.hf_folder import HF_CONFIG, find_source, is_hf_folder, is_hub_name
from trainer.config.places import absolute_path
from trainer.errors import CheckpointError, ConfigError
from trainer.interchange.weight_index import weight_files
from trainer.run_paths import CONFIG

_KEY = "checkpoint.init_from"


def base_files(found: Found) -> list[str]:
    """Return the files that decide the weights of a base: a checkpoint's manifest vouches for its others."""
    if not found.is_foreign:
        return [MANIFEST]
    return sorted([HF_CONFIG, *(path.name for path in weight_files(found.path)[0])])


def find_base(checkpoint: Path, base: Base, init_from: str | None) -> Path:
    """Return the folder of a base: where it was, or where `checkpoint.init_from` says that it is now.

    Raises:
        CheckpointError: it is not there, or is another model.
    """
    problems: list[CheckpointError] = []
    for path in _places(checkpoint, base, init_from):
        try:
            _check_is_same(path, base)
            return path
        except CheckpointError as error:
            problems.append(error)
    raise CheckpointError(
        f"{checkpoint} holds adapters alone, and the model that they are added to must be as it was in {base.path}, "
        f"but {problems[0]}",
        hints=[f"to go on with the run where the model is elsewhere by now, give {_KEY} its place"],
    ) from problems[0]


def _places(checkpoint: Path, base: Base, init_from: str | None) -> Iterator[Path]:
    yield Path(base.path)
    named = init_from or _saved_init_from(checkpoint)
    if named is None:
        return
    if is_hub_name(named):
        try:
            yield find_source(named, _KEY)
        except ConfigError as error:
            raise CheckpointError(str(error), error.hints) from error
        return
    path = absolute_path(named, _KEY)
    yield path if is_hf_folder(path) or not path.exists() else find_checkpoint(path)[0]


def _saved_init_from(checkpoint: Path) -> str | None:
    """Return what the run that wrote a checkpoint began with: on the hub, another machine finds it again."""
    return saved_config(checkpoint / CONFIG).checkpoint.init_from


def _check_is_same(path: Path, base: Base) -> None:
    """Check what can be checked without reading weights."""
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")
    for name, facts in base.files.items():
        found = path / name
        if not found.is_file():
            raise CheckpointError(f"{found} is missing")
        if name in (MANIFEST, HF_CONFIG):
            check_file(found, facts)
        elif found.stat().st_size != facts.size_bytes:
            raise CheckpointError(f"{found} has {found.stat().st_size} bytes, and had {facts.size_bytes}")


def check_base(checkpoint: Path, manifest: Manifest, init_from: str | None, part: int = 0, parts: int = 1) -> None:
    """Check every byte of every `parts`-th file of a checkpoint's base, if it has one.

    Raises:
        CheckpointError: it is not there, or has changed.
    """
    base = manifest.base
    if base is None:
        return
    path = find_base(checkpoint, base, init_from)
    try:
        if MANIFEST in base.files:
            check_content(path, read_manifest(path), part, parts)
            return
        for name in sorted(base.files)[part::parts]:
            check_file(path / name, base.files[name])
    except CheckpointError as error:
        raise CheckpointError(
            f"{checkpoint} holds adapters alone, and the model that they are added to must be as it was, but {error}"
        ) from error
