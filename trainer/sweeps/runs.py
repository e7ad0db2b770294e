"""A point of a sweep with its run folder: checked before anything starts, and its results. No torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.compose import compose, differences, from_yaml
from trainer.config.multirun import Point
from trainer.config.schema import TridentConfig
from trainer.config.validate import fill_machine, problems
from trainer.config.wandb_variables import VARIABLES, variable
from trainer.config.words import quoted
from trainer.errors import ConfigError
from trainer.files import storage_faults
from trainer.machine import usable_cores
from trainer.metrics.jsonl import read_rows
from trainer.run_folder import RunFolder
from trainer.run_paths import CONFIG, SUMMARY
from trainer.settling import judged

_LOCK = ".sweep.lock"
_LONGEST_NAME = 150
"""Longest name of a folder. Most file systems allow 255 bytes in a name."""
_CLOCK = re.compile(r"\$\{now:[^}]*\}")
_NOT_THE_POINT = (
    *("run_dir", "logging.", "launch.", "runtime.", "checkpoint.", "layout.", "zero.", "data.cache_dir"),
    "data.prefetch_steps",
    *("train.steps", "train.log_every", "eval.", "optimizer.implementation"),
)
"""Keys that may differ from those of an earlier start of the same sweep."""


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    point: Point
    folder: Path
    config: TridentConfig

    @property
    def words(self) -> list[str]:
        """Overrides of the run, its folder included."""
        words = [word for word in self.point.words if not word.lstrip("-+").startswith("run_dir=")]
        own_id = VARIABLES["WANDB_RUN_ID"]
        if variable(os.environ, "WANDB_RUN_ID") and not any(word.startswith(f"{own_id}=") for word in words):
            # With one id for all of them they would be one run in wandb.
            words.append(f"{own_id}=null")
        return [*words, f"run_dir={quoted(str(self.folder))}"]

    def summary(self) -> dict[str, Any]:
        """Return the content of the run's summary.json; nothing if there is none."""
        try:
            found = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has_finished(self) -> bool:
        """Return whether an earlier sweep trained all of its steps."""
        found = self.summary()
        return found.get("status") == "finished" and int(found.get("step", 0)) >= self.config.train.steps

    def last(self, metric: str) -> float | None:
        """Return a metric where it was last logged, or None if it never was."""
        rows = [self.summary().get("final", {}), *reversed(read_rows(RunFolder(self.folder).metrics))]
        return next((float(row[metric]) for row in rows if metric in row), None)

    def names(self) -> list[str]:
        """Return the names of everything that the run logged."""
        rows = [self.summary().get("final", {}), *read_rows(RunFolder(self.folder).metrics)]
        return sorted({name for row in rows for name in row})


def wrong_with(config: TridentConfig, gpus: int | None) -> tuple[TridentConfig, list[str]]:
    """Return the config as this machine fills it (`gpus=None`: unchanged), and its problems.

    A layout that is to be found is found by the run itself: only the rest is judged.
    """
    if gpus is not None:
        config = fill_machine(config, gpus, usable_cores())
    return config, problems(judged(config) if config.layout.auto else config, None, gpus)


def checked(found: Sequence[Point], gpus: int | None) -> list[SweptRun]:
    """Return the runs of all points.

    Args:
        found: the points.
        gpus: CUDA devices of this machine; None: another one will train.

    Raises:
        ConfigError: a point cannot run. All problems, each with the points that have it.
    """
    wrong: dict[str, list[str]] = {}
    configs = []
    for point in found:
        try:
            config, problems_here = wrong_with(compose(point.words), gpus)
        except ConfigError as error:
            problems_here = list(error.problems)
        else:
            configs.append(config)
        for problem in problems_here:
            wrong.setdefault(problem, []).append(point.name)
    if wrong:
        raise ConfigError([_told(problem, names, len(found)) for problem, names in wrong.items()])
    root = sweep_folder(found, configs)
    names = folder_names(found)
    runs = [SweptRun(point, root / name, config) for point, name, config in zip(found, names, configs, strict=True)]
    for run in runs:
        check_same_sweep(run)
    return runs


def _told(problem: str, names: list[str], total: int) -> str:
    if len(names) == total:
        return problem
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{problem} (in {names[0]}{others})"


def sweep_folder(found: Sequence[Point], configs: Sequence[TridentConfig]) -> Path:
    """Return the folder that holds the runs' folders.

    Args:
        found: the points, or those at the ends of what a search may choose.
        configs: the config of each of them.

    Raises:
        ConfigError: `run_dir` has several values, or is the folder of a run.
    """
    point, config = found[0], configs[0]
    swept = {word.partition("=")[0] for word in point.swept}
    if "run_dir" in swept:
        raise ConfigError("run_dir must be one folder for the sweep, but has several values; each run gets its own")
    if not any(word.lstrip("-+").startswith("run_dir=") for word in point.words):
        return Path("sweeps", "default" if "name" in swept else config.name).absolute()
    _check_one_folder(found, configs)
    given = RunFolder.of(config)
    if given.config.is_file():
        raise ConfigError(
            f"run_dir must be a folder for the runs of the sweep, but {given.path} holds a run; change run_dir"
        )
    return given.path


def _check_one_folder(found: Sequence[Point], configs: Sequence[TridentConfig]) -> None:
    """Check that `run_dir` refers to nothing that differs between runs. What only the clock changes is one folder."""
    folders = [config.run_dir for config in configs]
    if len(set(folders)) > 1 and any("${now:" in word for word in found[0].words):
        folders = [compose([_CLOCK.sub("now", word) for word in point.words]).run_dir for point in found]
    other = next((folder for folder in folders if folder != folders[0]), None)
    if other is not None:
        raise ConfigError(
            f"run_dir must be one folder for the sweep, but is {folders[0]} for one run and {other} for another; leave "
            "out what refers to a key that differs: each run gets a folder of its own there, named after its values"
        )


def folder_names(found: Sequence[Point]) -> list[str]:
    """Return a name for the folder of each point, no two alike, the same at every start."""
    names: list[str] = []
    for point in found:
        name = re.sub(r"[^\w.,=+-]", "_", point.name)
        if len(name) > _LONGEST_NAME or name in names:
            digest = hashlib.blake2b(point.name.encode(), digest_size=4).hexdigest()
            name = f"{name[:_LONGEST_NAME]}-{digest}"
        names.append(name)
    return names


def check_same_sweep(run: SweptRun) -> None:
    """Check that an earlier start in the run's folder was a start of this run.

    Raises:
        ConfigError: it had other settings, so its result would be taken for that of this point.
    """
    path = run.folder / CONFIG
    if not path.is_file():
        return
    try:
        earlier = from_yaml(path.read_text(encoding="utf-8"))
    except (ConfigError, OSError, UnicodeDecodeError):
        return  # the run itself reports what is wrong with it
    changed = [key for key in differences(earlier, run.config) if not key.startswith(_NOT_THE_POINT)]
    if changed:
        raise ConfigError(
            f"run_dir must hold this sweep, but {run.folder} holds a run that differs in {', '.join(changed[:8])}"
            f"{' and more' if len(changed) > 8 else ''}",
            hints=["set run_dir to another folder, or give these keys their earlier values"],
        )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other sweeps out of the folder while inside. The operating system releases a killed sweep's claim.

    Raises:
        ConfigError: another sweep has it.
        StorageError: the folder cannot be written.
    """
    with storage_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run_dir must not be in use, but a sweep runs in {folder} now",
                hints=["wait for it, stop it, or set run_dir to another folder"],
            ) from None
        except OSError:
            pass  # the file system cannot lock; each run says so
        yield
