"""Tasks of the Language Model Evaluation Harness by their names: found, or refused in one line. No torch."""

from __future__ import annotations

import difflib
import importlib.util
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.models import make_model
from trainer.config.places import absolute_path
from trainer.config.schema import TridentConfig
from trainer.errors import ConfigError
from trainer.samples.check import MAX_PARAMETERS

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_LOG = "lm_eval"
_NEAR = 0.75
WITH_DEFAULTS = True
"""True if the harness's own tasks are looked at; tests have no need of thousands."""


def check_harness(key: str) -> None:
    """Check that the harness is installed. Imports nothing.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"{key} needs the package lm-eval, but it is not installed",
            hints=["pip install 'trident-trainer[eval]'", f"or leave {key} out"],
        )


def check_tasks(config: TridentConfig, vocab_size: int) -> None:
    """Check that a run can run its tasks: the harness is installed, they exist, and the model is small enough.

    Raises:
        ConfigError: it cannot.
    """
    wanted = config.eval
    if not wanted.tasks:
        return
    parameters = make_model(config.model, vocab_size).parameter_count
    if parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"eval.tasks needs a model of at most {MAX_PARAMETERS:,} parameters, since one rank puts it together on "
            f"its CPU, but this one has {parameters:,}; leave it out, and use `trident evaluate` on its checkpoints"
        )
    folder = wanted.tasks_include_path
    find_tasks(wanted.tasks, () if folder is None else (folder,), "eval.tasks")


@lru_cache(maxsize=1)
def find_tasks(names: tuple[str, ...], include_path: tuple[str, ...], key: str) -> TaskManager:
    """Return the harness's table of tasks, with the folders of the user's own first.

    The table of the harness's own tasks takes some seconds; it is made only if a name is not in those folders.

    Args:
        names: names, patterns with `*`, or .yaml files.
        include_path: folders with the user's tasks.
        key: the key of the names; errors name it.

    Raises:
        ConfigError: the harness is not installed, or a folder or a task does not exist.
    """
    check_harness(key)
    folders = [absolute_path(one, "include_path") for one in include_path]
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        raise ConfigError(f"include_path must be a folder with tasks, but {missing[0]} is none")
    from lm_eval.tasks import TaskManager

    logging.getLogger(_LOG).setLevel(logging.ERROR)
    own = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    if not _unknown(names, own):
        return own
    every = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=WITH_DEFAULTS)
    unknown = _unknown(names, every)
    if unknown:
        known = list(every.all_tasks)
        raise ConfigError(
            [f"{key} must name tasks that exist, but there is no {name!r}{_near(name, known)}" for name in unknown],
            hints=["`lm-eval ls tasks` lists them", "tasks of your own are found with include_path=FOLDER"],
        )
    return every


def _unknown(names: Sequence[str], manager: TaskManager) -> list[str]:
    return [name for name in names if not matching(name, manager) and not _is_file(name)]


def _near(name: str, known: Sequence[str]) -> str:
    # Of thousands of names; the measure for keys takes a minute for so many.
    close = difflib.get_close_matches(name, known, 1, _NEAR)
    return f"; did you mean {close[0]!r}?" if close else ""


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(absolute_path(name, "tasks")).is_file()


def matching(name: str, manager: TaskManager) -> list[str]:
    """Return the tasks of a table that a name or a pattern means."""
    return list(manager.match_tasks([name])) if "*" in name else [name] * (name in manager.task_index)
