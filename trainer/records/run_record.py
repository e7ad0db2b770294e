"""The record of a run: everything that its folder says, as one value."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.schema import TridentConfig
from trainer.data.journal import Stretch, read_journal
from trainer.errors import ConfigError, first_line
from trainer.metrics.sink import Sample
from trainer.records.happened import Event, checkpoints, read_happened
from trainer.records.metric_columns import Metrics, is_number, read_metrics, step_of
from trainer.records.run_config import read_flat_config, typed_config
from trainer.records.run_status import RunStatus, judge
from trainer.records.signs import Signs, read_signs
from trainer.records.tolerant import LineReader, last_objects, read_object
from trainer.run_paths import CHECKPOINTS, CONFIG, METRICS, SUMMARY, RunPaths, run_of_checkpoint

_TAIL_BYTES = 1 << 18
"""Bytes of metrics.jsonl that an overview looks at."""
_FEW = 3
_MOST_LOOKED_AT = 1000
_MOST = 2**53
"""Number of steps or ranks from which on it is taken for garbage."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run's folder says; what could not be read is empty or None, and noted."""

    path: Path
    name: str
    config: Mapping[str, object]
    """Dotted key -> plain value, as the version that wrote it knew it."""
    typed_config: TridentConfig | None
    """The config as this version reads it; None if it cannot."""
    plan: Mapping[str, Any] | None
    """Content of plan.json."""
    metrics: Metrics
    """The rows that count."""
    discarded: Metrics
    """Rows of steps that come again later in the file."""
    summary: Mapping[str, Any] | None
    """Content of summary.json: of the last end of the run, not always of its last start."""
    status: RunStatus
    events: tuple[Event, ...]
    samples: tuple[Sample, ...]
    """Texts that the model wrote, in the order of steps."""
    starts: tuple[Stretch, ...]
    """Places in the data at which it began to read, at starts and returns."""
    checkpoints: tuple[int, ...]
    """Steps of the checkpoints that are there."""
    environment: Mapping[str, str]
    """Name -> version of the software, and the commit of Trident's own source."""
    notes: tuple[str, ...]
    """Sentences about what could not be read."""


@dataclass(frozen=True)
class Overview:
    """The few facts of a run that a list shows."""

    path: Path
    name: str
    config: Mapping[str, object]
    plan: Mapping[str, Any] | None
    last: Mapping[str, float]
    """The last row of metrics; empty: there is none."""
    status: RunStatus
    events: tuple[Event, ...]
    notes: tuple[str, ...]

    @property
    def layout(self) -> str:
        """The layout in a few characters: pp2 tp2 dp4; empty if it is not known."""
        return layout_of(self.plan, self.config)


def read_record(path: Path, signs: Signs | None = None) -> RunRecord:
    """Return everything that a run's folder says. The run may be going on.

    Args:
        path: the folder.
        signs: what is known of the run's processes, for a copy of a folder; None: look for them here.

    Raises:
        ConfigError: the folder is not that of a run, or may not be read.
    """
    paths = check_is_run(path)
    notes: list[str] = []
    config = read_flat_config(paths, notes)
    metrics, discarded = read_metrics(paths.metrics, notes)
    plan, summary = read_object(paths.plan, notes), read_object(paths.summary, notes)
    starts = _starts(paths, notes)
    events = tuple(read_happened(paths, starts, notes))
    found = checkpoints(paths)
    last = int(metrics.steps[-1]) if len(metrics) else 0
    return RunRecord(
        path=path,
        name=_name(config, path),
        config=config,
        typed_config=typed_config(paths, notes),
        plan=plan,
        metrics=metrics,
        discarded=discarded,
        summary=summary,
        status=judge(signs or read_signs(paths), events, summary, last, _steps(config)),
        events=events,
        samples=_samples(paths, notes),
        starts=starts,
        checkpoints=tuple(step for step, _ in found),
        environment=_environment(summary, found),
        notes=tuple(notes),
    )


def read_overview(path: Path, signs: Signs | None = None) -> Overview:
    """Return the few facts of a run that a list shows, from the ends of its files.

    Raises:
        ConfigError: as `read_record`.
    """
    paths = check_is_run(path)
    notes: list[str] = []
    config = read_flat_config(paths, notes)
    rows = [row for row in last_objects(paths.metrics, _TAIL_BYTES, notes) if step_of(row) is not None]
    last = {name: value for name, value in (rows[-1] if rows else {}).items() if is_number(value)}
    plan, summary = read_object(paths.plan, notes), read_object(paths.summary, notes)
    events = read_happened(paths, (), notes)
    step = step_of(last) or 0
    status = judge(signs or read_signs(paths), events, summary, step, _steps(config))
    return Overview(path, _name(config, path), config, plan, last, status, tuple(events), tuple(notes))


def check_is_run(path: Path) -> RunPaths:
    """Return the paths in a run's folder.

    Raises:
        ConfigError: it is not the folder of a run, or may not be read.
    """
    paths = RunPaths(path)
    inside = run_of_checkpoint(path)
    if inside is not None and inside.config.is_file():
        raise ConfigError(f"RUN must be the folder of a run, but {path} is a checkpoint of one; use {inside.path}")
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise ConfigError(f"RUN must be the folder of a run, but {path} is a file", _hint([path.parent]))
        if is_run(path):
            return paths
        entries = [entry.name for entry in path.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"RUN must be the folder of a run, but {path} is not there", _hint([*_siblings(path)])
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"RUN must be a folder that can be read, but {path} is not: {first_line(error)}") from error
    found = f"holds neither {CONFIG} nor {METRICS}" if entries else "is empty"
    raise ConfigError(f"RUN must be the folder of a run, but {path} {found}", _hint(runs_below(path)))


def is_run(path: Path) -> bool:
    """Return whether a folder is that of a run, of whichever version.

    Raises:
        OSError: it may not be looked into.
    """
    names = {entry.name for entry in path.iterdir()}
    if METRICS in names or SUMMARY in names:
        return True
    # A checkpoint has a config too.
    return CONFIG in names and bool(names & {CHECKPOINTS, "logs", "plan.json"})


def runs_below(folder: Path, deepest: int = 2) -> list[Path]:
    """Return the folders of runs in a folder and in the folders in it, in the order of their names.

    Folders inside of runs are not looked into, nor hidden ones, nor those that may not be read.
    """
    found: list[Path] = []
    try:
        below = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []
    for entry in below[:_MOST_LOOKED_AT]:
        try:
            if not entry.is_dir():
                continue
            if is_run(entry):
                found.append(entry)
            elif deepest > 1:
                found += runs_below(entry, deepest - 1)
        except OSError:
            continue
    return found


def layout_of(plan: Mapping[str, Any] | None, config: Mapping[str, object]) -> str:
    """Return a layout in a few characters, from plan.json or else from the config; empty if neither says it."""
    sizes = {}
    held = (plan or {}).get("layout")
    for short, name in (("pp", "pipeline"), ("tp", "tensor"), ("dp", "data")):
        key = f"{name}_parallel_size"
        found = held.get(key) if isinstance(held, Mapping) else config.get(f"layout.{key}")
        if isinstance(found, int) and 0 < found < _MOST:
            sizes[short] = found
    return " ".join(f"{short}{size}" for short, size in sizes.items())


def _siblings(path: Path) -> list[Path]:
    """Return the runs beside a path that is not there, whose names are near its own."""
    from difflib import get_close_matches

    beside = {run.name: run for run in runs_below(path.parent, 1)}
    return [beside[name] for name in get_close_matches(path.name, beside, _FEW)]


def _hint(runs: list[Path]) -> list[str]:
    named = [str(run) for run in runs if _is_run_quietly(run)]
    if not named:
        return []
    return [f"runs there are {', '.join(named[:_FEW])}{' and more' if len(named) > _FEW else ''}"]


def _is_run_quietly(path: Path) -> bool:
    try:
        return is_run(path)
    except OSError:
        return False


def _name(config: Mapping[str, object], path: Path) -> str:
    name = config.get("name")
    return name if isinstance(name, str) and name else path.name


def _steps(config: Mapping[str, object]) -> int | None:
    steps = config.get("train.steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) and 0 < steps < _MOST else None


def _starts(paths: RunPaths, notes: list[str]) -> tuple[Stretch, ...]:
    try:
        return tuple(read_journal(paths.journal)) if paths.journal.is_file() else ()
    except OSError as error:
        notes.append(f"{paths.journal.name} cannot be read: {error.strerror or first_line(error)}")
        return ()


def _samples(paths: RunPaths, notes: list[str]) -> tuple[Sample, ...]:
    reader = LineReader(paths.samples)
    found = []
    try:
        for held in reader.objects():
            step, prompt, text = step_of(held), held.get("prompt"), held.get("text")
            if step is not None and isinstance(prompt, str) and isinstance(text, str):
                found.append(Sample(step, prompt, text))
    except OSError as error:
        notes.append(f"{paths.samples.name} cannot be read: {error.strerror or first_line(error)}")
    reader.note(notes)
    return tuple(sorted(found, key=lambda sample: sample.step))


def _environment(summary: Mapping[str, Any] | None, saved: list[tuple[int, Path]]) -> dict[str, str]:
    """Return versions and commit, as the summary says them, or else the newest checkpoint."""
    held: Mapping[str, Any] = summary or {}
    if not isinstance(held.get("versions"), Mapping) and saved:
        held = {**held, **(read_object(saved[-1][1] / "manifest.json", []) or {})}
    versions, source = held.get("versions"), held.get("source")
    found = {str(name): str(version) for name, version in versions.items()} if isinstance(versions, Mapping) else {}
    if isinstance(source, Mapping) and isinstance(source.get("commit"), str):
        found["commit"] = f"{source['commit'][:12]}{' with changes' if source.get('has_changes') else ''}"
    return found
