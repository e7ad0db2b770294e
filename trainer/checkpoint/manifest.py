"""A checkpoint's description of itself: step, progress, layout, and size and hash of every file. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from trainer.config.plan import RunPlan
from trainer.errors import CheckpointError
from trainer.loop.state import TrainState

MANIFEST = "manifest.json"
IMPORTED_FROM = "imported_from"
"""Key of a manifest's layout: the Hugging Face model whose weights it holds as they were."""
FORMAT_VERSION = 3
_CHECKSUM = "checksum"
_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class FileFacts:
    """Size and hash that a file must have."""

    size_bytes: int
    blake2b: str


IMPORTED_FROM = "imported_from"
"""Entry of `layout` of a checkpoint that holds imported weights alone, and nothing that training goes on with."""


@dataclass(frozen=True)
class Base:
    """The model whose weights a checkpoint of adapters leaves out."""

    path: str
    """Folder of a Hugging Face model, or another checkpoint."""
    files: Mapping[str, FileFacts]
    """Relative path -> facts of the files that say what its weights are; a checkpoint's manifest vouches for others."""


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    step: int
    vocab_size: int
    train_state: Mapping[str, object]
    scalars: Mapping[str, float]
    """The engine's scalars: counters and loss scale."""
    probe_loss: float | None
    """Loss on the fixed micro-batch, see `probe`; None: nobody computed it, since the weights were only copied."""
    layout: Mapping[str, object]
    """Layout that wrote it, for people: a checkpoint can be read in any layout. Also `IMPORTED_FROM`."""
    versions: Mapping[str, str]
    files: Mapping[str, FileFacts]
    """Relative path -> facts of every file but this one."""
    base: Base | None = None
    """Weights that are not here; None: all are."""

    def to_json(self) -> str:
        """Return the file's text, which ends with a hash of all the rest."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        if self.base is None:
            del content["base"]
        return _dump({**content, _CHECKSUM: _checksum(content)})


def describe_layout(plan: RunPlan) -> dict[str, object]:
    """Return the layout of a plan, under the names of config keys; the ZeRO stage is the one that runs."""
    config = plan.config
    return {
        "pipeline_parallel_size": plan.pipeline_parallel_size,
        "tensor_parallel_size": plan.tensor_parallel_size,
        "data_parallel_size": plan.data_parallel_size,
        "sequence_parallel": config.layout.sequence_parallel,
        "pipeline_schedule": config.layout.pipeline_schedule.value,
        "zero_stage": plan.zero_stage,
        "offload": config.zero.offload.value,
        "dtype": config.precision.dtype.value,
        "global_batch_size": config.batch.global_batch_size,
        "seq_length": plan.execution.seq_length,
    }


def _dump(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _checksum(content: Mapping[str, object]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def file_facts(path: Path) -> FileFacts:
    """Return size and hash of a file. Reads all of it."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return FileFacts(size, digest.hexdigest())


def read_manifest(checkpoint: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: it is missing, damaged, or of another format version.
    """
    path = checkpoint / MANIFEST
    try:
        text = path.read_bytes().decode()
        return _parse(json.loads(text), text)
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} must be a checkpoint, but holds no {MANIFEST}") from None
    except KeyError as error:
        raise CheckpointError(f"{path} must be a checkpoint's manifest, but lacks {error}") from error
    except (OSError, ValueError, RecursionError, CheckpointError) as error:
        raise CheckpointError(f"{path} must be a checkpoint's manifest, but cannot be read: {error}") from error


def _parse(raw: object, text: str) -> Manifest:
    if not isinstance(raw, dict):
        raise ValueError(f"it must be a JSON object, but is a {type(raw).__name__}")
    if raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format_version must be {FORMAT_VERSION}, but is {raw['format_version']!r}")
    found, expected = raw[_CHECKSUM], _checksum({key: value for key, value in raw.items() if key != _CHECKSUM})
    if found != expected:
        raise ValueError(f"its checksum must be {expected}, but is {found}: it was changed or damaged")
    if text != _dump(raw):
        # The checksum ignores white space and other spellings of the same values.
        raise ValueError("it must be as it was written, but its white space has changed")
    files = _object(raw, "files")
    return Manifest(
        step=_whole(raw, "step"),
        vocab_size=_whole(raw, "vocab_size"),
        train_state=TrainState.from_dict(_object(raw, "train_state")).to_dict(),
        scalars={name: _number(value, name) for name, value in _object(raw, "scalars").items()},
        probe_loss=None if raw["probe_loss"] is None else _number(raw["probe_loss"], "probe_loss"),
        layout=_object(raw, "layout"),
        versions={name: str(text) for name, text in _object(raw, "versions").items()},
        files={_inside(name): _facts(_object(files, name)) for name in files},
        base=_base(_object(raw, "base")) if "base" in raw else None,
    )


def _base(raw: Mapping[str, object]) -> Base:
    files = _object(raw, "files")
    return Base(str(raw["path"]), {_inside(name): _facts(_object(files, name)) for name in files})


def _facts(raw: Mapping[str, object]) -> FileFacts:
    return FileFacts(_whole(raw, "size_bytes"), str(raw["blake2b"]))


def _object(raw: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = raw[key]
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be a JSON object, but is {value!r}")
    return value


def _whole(raw: Mapping[str, object], key: str) -> int:
    value = raw[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{key} must be a whole number of at least 0, but is {value!r}")
    return value


def _number(value: object, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key} must be a number, but is {value!r}")
    return float(value)


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"files must be below the checkpoint, but one is {name!r}")
    return name


def check_sizes(checkpoint: Path, manifest: Manifest) -> None:
    """Check that every file of the manifest is there in full size. Reads none of them.

    Raises:
        CheckpointError: names the first file that is missing or has another size.
    """
    for name, facts in manifest.files.items():
        _check_size(checkpoint / name, facts)


def _check_size(path: Path, facts: FileFacts) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} must exist, but is missing")
    found = path.stat().st_size
    if found != facts.size_bytes:
        raise CheckpointError(f"{path} must have {facts.size_bytes} bytes, but has {found}")


def check_content(checkpoint: Path, manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Check every byte of every `parts`-th file, beginning with number `part`, so that ranks share the work.

    Raises:
        CheckpointError: names the first file that has changed since it was saved.
    """
    check_sizes(checkpoint, manifest)
    for name in sorted(manifest.files)[part::parts]:
        check_file(checkpoint / name, manifest.files[name])


def check_file(path: Path, facts: FileFacts) -> None:
    """Check every byte of one file.

    Raises:
        CheckpointError: it has changed since it was saved.
    """
    _check_size(path, facts)
    try:
        found = file_facts(path)
    except OSError as error:
        raise CheckpointError(f"{path} must be readable, but: {error}") from error
    if found != facts:
        raise CheckpointError(
            f"{path} must be as it was saved, but its content has changed "
            f"(blake2b {found.blake2b}, saved {facts.blake2b})"
        )
