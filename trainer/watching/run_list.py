"""`trident runs`: the runs in a folder, each on a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.config.places import absolute_path
from trainer.errors import ConfigError
from trainer.log import say, tell
from trainer.metrics.figures import duration, number, short
from trainer.records.printable import printable
from trainer.records.run_record import Overview, is_run, read_overview, runs_below

DEFAULT = "runs"
DEEPEST = 3
"""Levels of folders that are looked into: a sweep has its runs in a folder of its own."""
_HEADS = ("run", "state", "step", "loss", "eval", "layout", "tokens/s", "changed")


def runs_verb(folder: str | None, as_json: bool) -> int:
    """List the runs in a folder, those first that changed last, and return exit code 0.

    Raises:
        ConfigError: the folder is not there or holds no run.
    """
    path = absolute_path(folder or DEFAULT, "FOLDER")
    found = sorted(_overviews(path, is_named=folder is not None), key=_age)
    if as_json:
        tell(json.dumps([_as_json(one) for one in found], indent=1))
        return 0
    for line in _table([_HEADS, *(_cells(one, path) for one in found)]):
        say(line)
    for one in found:
        for note in one.notes:
            say(f"note: {printable(_shown(one.path, path))}: {printable(note)}")
    return 0


def _overviews(path: Path, is_named: bool) -> list[Overview]:
    try:
        folders = [path] if is_run(path) else runs_below(path, DEEPEST)
    except (FileNotFoundError, NotADirectoryError):
        hints = [] if is_named else ["another folder: trident runs FOLDER"]
        raise ConfigError(f"FOLDER must be a folder that holds runs, but {path} is none", hints) from None
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"FOLDER must be a folder that can be read, but {path} is not: {reason}") from error
    found = []
    for run in folders:
        # One may go while the others are read.
        with suppress(ConfigError):
            found.append(read_overview(run))
    if not found:
        raise ConfigError(f"FOLDER must hold runs, but there is none in {path} or {DEEPEST - 1} levels below it")
    return found


def _age(one: Overview) -> float:
    age = one.status.age_s
    return math.inf if age is None else age


def _shown(run: Path, folder: Path) -> str:
    return run.name if run == folder else str(run.relative_to(folder))


def _cells(one: Overview, folder: Path) -> list[str]:
    status, last = one.status, one.last
    of = f"/{status.steps}" if status.steps else ""
    return [
        printable(_shown(one.path, folder)),
        status.state.value,
        f"{status.step}{of}",
        *(number(last[name], 4) if name in last else "-" for name in ("train/loss", "eval/loss")),
        one.layout or "-",
        short(last["perf/tokens_per_second"]) if "perf/tokens_per_second" in last else "-",
        "-" if status.age_s is None else f"{duration(status.age_s)} ago",
    ]


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _as_json(one: Overview) -> dict[str, Any]:
    status = one.status
    return {
        "path": str(one.path),
        "name": one.name,
        "state": status.state.value,
        "reason": status.reason,
        "step": status.step,
        "steps": status.steps,
        "age_s": status.age_s,
        "layout": one.layout,
        "last": {name: value for name, value in one.last.items() if math.isfinite(value)},
        "notes": list(one.notes),
    }
