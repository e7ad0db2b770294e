"""Tasks of the Language Model Evaluation Harness with their data, which may be on the network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import datasets
from lm_eval.tasks import TaskManager

from trainer.config.places import absolute_path
from trainer.errors import ConfigError
from trainer.evaluation.task_names import matching

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def load_tasks(names: Sequence[str], manager: TaskManager, key: str) -> dict[str, Any]:
    """Return the tasks, with their data.

    Raises:
        ConfigError: a task cannot be loaded, for example because its data are on the network.
    """
    datasets.disable_progress_bars()
    found = [one for name in names for one in (matching(name, manager) or [str(absolute_path(name, key))])]
    try:
        loaded: dict[str, Any] = manager.load(list(dict.fromkeys(found)))
    # Tasks are code and data of anybody: they fail with whatever their parts raise.
    except Exception as error:
        asked = [name for name in _OFFLINE if os.environ.get(name, "0").lower() not in ("", "0", "false", "no")]
        why = f"; {asked[0]} is set, so nothing is fetched" if asked else ""
        raise ConfigError(
            f"{key}={','.join(names)} must be loaded with their data, but: {_reason(error)}{why}",
            hints=[
                "data on the network are fetched once, and then kept by the library datasets",
                "a task made of local files needs no network: docs/evaluate.md",
            ],
        ) from error
    if not loaded["tasks"]:
        raise ConfigError(f"{key} must name a task, but {','.join(names)} holds none")
    return loaded


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
