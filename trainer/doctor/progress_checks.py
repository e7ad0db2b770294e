"""The progress of the ranks of this machine or container, which is the health of a container. No torch.

A run that hangs keeps its processes alive and its devices busy, but writes no row, no log line and no checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.doctor.finding import Check, Finding, fail, ok
from trainer.doctor.surroundings import Surroundings
from trainer.run_paths import RunPaths

SECONDS_VARIABLE = "TRIDENT_HEALTH_SECONDS"
"""Variable with the longest time between writes; more than a step, an evaluation and train.log_every steps take."""
_SECONDS = 1800.0
"""The same without the variable, as runtime.timeout_s."""
_DELETED = " (deleted)"


def look_at_progress(around: Surroundings) -> Iterator[Finding]:
    """Find runs of this machine that have written nothing for too long."""
    text, name = around.environ.get(SECONDS_VARIABLE) or f"{_SECONDS:g}", "progress"
    limit = float(text) if text.replace(".", "", 1).isdecimal() else None
    if limit is None or limit <= 0:
        yield fail(
            name, f"{SECONDS_VARIABLE} must be a number of seconds, but is {text!r}", f"`unset {SECONDS_VARIABLE}`"
        )
        return
    runs, problems = _runs(around.root / "proc"), 0
    for run in runs:
        written = last_written(run)
        age = time.time() - written
        if written == 0:
            problems += 1
            yield fail(name, f"{run} is gone, while a rank still trains in it", "stop the run and start it again")
        elif age > limit:
            problems += 1
            yield fail(
                name,
                f"{run} has written nothing for {age:.0f} s",
                f"stop the run and start it again; if it only is slow, `export {SECONDS_VARIABLE}={age * 2:.0f}`",
            )
    if not problems:
        found = f"{', '.join(map(str, runs))}: written to in the last {limit:g} s" if runs else "no rank trains here"
        yield ok(name, found)


def _runs(proc: Path) -> list[Path]:
    """Return the folders of runs that processes write a rank's log of: a rank's output goes there."""
    found = set()
    for process in proc.glob("[0-9]*"):
        # Processes end, and those of others are closed to this one.
        with suppress(OSError):
            log = Path(os.readlink(process / "fd" / "1").removesuffix(_DELETED))
            if log.match("logs/rank_*.log") and log.is_absolute():
                found.add(log.parent.parent)
    return sorted(found)


def last_written(run: Path) -> float:
    """Return when something was last written in a run's folder, in seconds since the epoch; 0 if nothing is there."""
    paths = RunPaths(run)
    files = [paths.metrics, paths.checkpoint_folder, *paths.logs.glob("*"), *paths.checkpoint_folder.glob("*")]
    newest = 0.0
    for file in files:
        with suppress(OSError):
            newest = max(newest, file.stat().st_mtime)
    return newest


PROGRESS = Check("progress", "runs", look_at_progress)
CHECKS = (PROGRESS,)
"""Checks of this file."""
