"""The files of a Hugging Face folder that hold its weights. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.errors import CheckpointError, first_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files with tensors, and what the index says: name -> file.

    Raises:
        CheckpointError: there are none, one is missing, or the index cannot be read.
    """
    for single, index in ((SINGLE, INDEX), (_PICKLE, _PICKLE_INDEX)):
        if (folder / index).is_file():
            indexed = _index(folder / index)
            files = [folder / name for name in sorted(set(indexed.values()))]
            missing = [path for path in files if not path.is_file()]
            if missing:
                raise CheckpointError(f"{missing[0]} must exist, since {index} names it, but is missing")
            return files, indexed
        if (folder / single).is_file():
            return [folder / single], {}
    raise CheckpointError(f"{folder} must hold weights ({SINGLE}, {INDEX} or {_PICKLE}), but holds none")


def _index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} must be an index with a weight_map, but: {first_line(error)}") from error
    outside = [file for file in names.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{path} must name files beside it, but names {outside[0]!r}")
    return names
