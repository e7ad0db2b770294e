"""What the tests of the data room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from trainer.config.keys import build
from trainer.config.schema import DataConfig, TridentConfig
from trainer.data.prepared import PreparedData
from trainer.errors import DataError


def config(**values: object) -> TridentConfig:
    """Return a config; `data__files` stands for the key `data.files`."""
    keys = {name.replace("__", "."): value for name, value in values.items()}
    return build({"name": "x", "run_dir": "runs/x"} | keys)


def files_config(*files: object, **values: object) -> DataConfig:
    return config(data__source="files", data__files=[str(name) for name in files], **values).data


def told(run: Callable[[], object]) -> str:
    """Run what must fail by the user's fault, and return the one line that the user reads."""
    with pytest.raises(DataError) as caught:
        run()
    error = caught.value
    assert error.exit_code == 2
    assert error.problems == (str(error),)
    for line in (str(error), *error.hints):
        assert line.splitlines() == [line]
    return str(error)


def stream(prepared: PreparedData, name: str = "train") -> npt.NDArray[np.int64]:
    shards = prepared.shards(name)
    return shards.tokens(0, len(shards)).astype(np.int64) if len(shards) else np.empty(0, np.int64)


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path
