"""What a checkpoint says about itself: step, layout, progress, and the size of every file. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.config.plan import RunPlan
from trainer.errors import CheckpointError

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

    @classmethod
    def of(cls, plan: RunPlan) -> Layout:
        """Return the layout of a plan."""
        config = plan.config
        return cls(
            pipeline_parallel_size=plan.pipeline_parallel_size,
            tensor_parallel_size=plan.tensor_parallel_size,
            data_parallel_size=plan.data_parallel_size,
            pipeline_schedule=config.layout.pipeline_schedule.value,
            zero_stage=config.zero.stage,
            offload=config.zero.offload.value,
            dtype=config.precision.dtype.value,
        )


_KEYS = {
    "pipeline_parallel_size": "layout.pipeline_parallel_size",
    "tensor_parallel_size": "layout.tensor_parallel_size",
    "data_parallel_size": "layout.data_parallel_size",
    "pipeline_schedule": "layout.pipeline_schedule",
    "zero_stage": "zero.stage",
    "offload": "zero.offload",
    "dtype": "precision.dtype",
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
        raw = json.loads(path.read_text())
        if raw["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"{path} must have format_version {FORMAT_VERSION}, but has {raw['format_version']}")
        return Manifest(
            step=int(raw["step"]),
            layout=Layout(**raw["layout"]),
            train_state=dict(raw["train_state"]),
            vocab_size=int(raw["vocab_size"]),
            files={str(name): int(size) for name, size in raw["files"].items()},
        )
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint} must be a checkpoint, but holds no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} must be a checkpoint's manifest, but cannot be read: {error!r}") from error


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
    """Check that the run has the layout that wrote the checkpoint.

    Raises:
        CheckpointError: names every key that differs.
    """
    here, there = asdict(Layout.of(plan)), asdict(manifest.layout)
    wrong = [f"{_KEYS[name]}={there[name]} (not {here[name]})" for name in here if here[name] != there[name]]
    if wrong:
        raise CheckpointError(
            f"{checkpoint} can be resumed only in the layout that wrote it: {', '.join(wrong)}",
            hints=[f"set {' '.join(item.split(' (')[0] for item in wrong)}", "or start anew with another run_dir"],
        )
