"""What a checkpoint says about itself: step, layout, progress, and the size of every file. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from trainer.config.plan import RunPlan
from trainer.errors import CheckpointError
from trainer.loop.state import TrainState
from trainer.model.layers import layer_names
from trainer.pipeline.partition import stage_bounds

MANIFEST = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Layout:
    """What must be equal for DeepSpeed's own files to load."""

    pipeline_parallel_size: int
    tensor_parallel_size: int
    data_parallel_size: int
    pipeline_schedule: str
    zero_stage: int
    offload: str
    dtype: str
    stage_boundaries: tuple[int, ...]
    """First block of each stage after the first, resolved."""

    @classmethod
    def of(cls, plan: RunPlan) -> Layout:
        """Return the layout of a plan."""
        config = plan.config
        first_block = layer_names(plan.model).index("blocks.0")
        return cls(
            pipeline_parallel_size=plan.pipeline_parallel_size,
            tensor_parallel_size=plan.tensor_parallel_size,
            data_parallel_size=plan.data_parallel_size,
            pipeline_schedule=config.layout.pipeline_schedule.value,
            zero_stage=config.zero.stage,
            offload=config.zero.offload.value,
            dtype=config.precision.dtype.value,
            stage_boundaries=tuple(bound - first_block for bound in stage_bounds(plan)[1:-1]),
        )


_KEYS = {
    "pipeline_parallel_size": "layout.pipeline_parallel_size",
    "tensor_parallel_size": "layout.tensor_parallel_size",
    "data_parallel_size": "layout.data_parallel_size",
    "pipeline_schedule": "layout.pipeline_schedule",
    "zero_stage": "zero.stage",
    "offload": "zero.offload",
    "dtype": "precision.dtype",
    "stage_boundaries": "layout.stage_boundaries",
    "vocab_size": "model.vocab_size",
}


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    step: int
    layout: Layout
    train_state: Mapping[str, object]
    vocab_size: int
    files: Mapping[str, int]
    """Relative path -> size in bytes of every file but this one."""

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"


def file_sizes(folder: Path) -> dict[str, int]:
    """Return relative path -> size in bytes of every file below `folder`, the manifest excepted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def read_manifest(checkpoint: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: it is missing, unreadable, or of another format version.
    """
    path = checkpoint / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"it must be a JSON object, but is a {type(raw).__name__}")
        if raw["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version must be {FORMAT_VERSION}, but is {raw['format_version']!r}")
        train_state = TrainState.from_dict(_object(raw, "train_state")).to_dict()
        files = _object(raw, "files")
        return Manifest(
            step=_whole(raw, "step"),
            layout=_layout(_object(raw, "layout")),
            train_state=train_state,
            vocab_size=_whole(raw, "vocab_size"),
            files={_inside(name): _whole(files, name) for name in files},
        )
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} must be a checkpoint, but holds no {MANIFEST}") from None
    except KeyError as error:
        raise CheckpointError(f"{path} must be a checkpoint's manifest, but lacks {error}") from error
    except (OSError, ValueError, RecursionError, CheckpointError) as error:
        raise CheckpointError(f"{path} must be a checkpoint's manifest, but cannot be read: {error}") from error


def _layout(raw: Mapping[str, object]) -> Layout:
    boundaries = raw["stage_boundaries"]
    if not isinstance(boundaries, list):
        raise ValueError(f"stage_boundaries must be a list, but is {boundaries!r}")
    return Layout(
        pipeline_parallel_size=_whole(raw, "pipeline_parallel_size"),
        tensor_parallel_size=_whole(raw, "tensor_parallel_size"),
        data_parallel_size=_whole(raw, "data_parallel_size"),
        pipeline_schedule=_text(raw, "pipeline_schedule"),
        zero_stage=_whole(raw, "zero_stage"),
        offload=_text(raw, "offload"),
        dtype=_text(raw, "dtype"),
        stage_boundaries=tuple(_whole({"stage_boundaries": item}, "stage_boundaries") for item in boundaries),
    )


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


def _text(raw: Mapping[str, object], key: str) -> str:
    value = raw[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} must be text, but is {value!r}")
    return value


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise ValueError(f"files must be below the checkpoint, but one is {name!r}")
    return name


def check_files(checkpoint: Path, manifest: Manifest) -> None:
    """Check that every file of the manifest is there in full size.

    Raises:
        CheckpointError: names the first file that is not.
    """
    for name, size in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"{path} must exist, but is missing")
        found = path.stat().st_size
        if found != size:
            raise CheckpointError(f"{path} must have {size} bytes, but has {found}")


def check_layout(manifest: Manifest, plan: RunPlan, checkpoint: Path) -> None:
    """Check that the run has the layout (and the vocabulary) that wrote the checkpoint.

    Raises:
        CheckpointError: names every key that differs.
    """
    here = {**asdict(Layout.of(plan)), "vocab_size": plan.model.vocab_size}
    there = {**asdict(manifest.layout), "vocab_size": manifest.vocab_size}
    wrong = [name for name in here if here[name] != there[name]]
    if wrong:
        found = [f"{_setting(name, there[name])} (not {_shown(here[name])})" for name in wrong]
        raise CheckpointError(
            f"{checkpoint} can be resumed only in the layout that wrote it: {', '.join(found)}",
            hints=[
                f"set {' '.join(_setting(name, there[name]) for name in wrong)}",
                "or start anew with another run_dir",
            ],
        )


def _setting(name: str, value: object) -> str:
    return f"{_KEYS[name]}={_shown(value)}"


def _shown(value: object) -> str:
    # As Hydra reads it, without spaces that a shell would split at.
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
