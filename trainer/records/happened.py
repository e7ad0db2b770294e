"""The events of a run, in order: starts, saves, evaluations, skipped batches, rewinds, restarts and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.data.journal import Stretch
from trainer.errors import first_line
from trainer.records.tolerant import LineReader
from trainer.restarts import RESTARTS_FILE, read_restarts
from trainer.run_events import read_events
from trainer.run_paths import EVENTS, RunPaths

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Event:
    """One event of a run."""

    kind: str
    """start, save, save_failed, evaluation, skip, spike, rewind, restart, stop or end; of later versions others."""
    step: int | None
    """Step that it belongs to; None: not known."""
    time: datetime | None
    """Moment in UTC; None: not known."""
    text: str
    """Description in words, without step and time: "saved a checkpoint"."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that the run wrote down of it."""


def read_happened(paths: RunPaths, starts: Sequence[Stretch], notes: list[str]) -> list[Event]:
    """Return the events of a run in order.

    Runs of versions that kept no list of events have some of them in other files: those of `starts`, restarts, skipped
    batches and checkpoints.
    """
    try:
        written = read_events(paths.path) if (paths.path / EVENTS).is_file() else []
    except OSError as error:
        notes.append(f"{EVENTS} cannot be read: {error.strerror or first_line(error)}")
        return []
    if not written:
        return _of_older_version(paths, starts)
    return [_event(event.kind, event.step, event.time, event.details) for event in written]


def _of_older_version(paths: RunPaths, starts: Sequence[Stretch]) -> list[Event]:
    found = [*_starts(starts), *_restarts(paths), *_skips(paths), *_saves(paths)]
    return sorted(found, key=lambda event: (event.step or 0, event.time is not None and event.time.timestamp()))


def _event(kind: str, step: object, time: datetime | None, details: Mapping[str, Any]) -> Event:
    known = step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None
    # A run that stopped as asked has ended too, but goes on when it is started again.
    if kind == "end" and details.get("status") == "stopped":
        kind = "stop"
    return Event(kind, known, time, _words(kind, details), details)


def _words(kind: str, details: Mapping[str, Any]) -> str:
    """Return an event in words."""
    known: dict[str, str] = {
        "start": f"started{_of(' on ', details.get('layout'))}",
        "restart": f"was started again by {details.get('by', 'somebody')}{_ended(details)}",
        "save": "saved a checkpoint",
        "save_failed": f"could not save a checkpoint{_of(': ', details.get('reason'))}",
        EVALUATION: f"evaluated{_of(': loss ', _figure(details.get('loss')))}",
        "skip": f"skipped a batch{_of(', which was ', details.get('reason'))}",
        "spike": f"skipped a spike of the loss{_of(': ', _figure(details.get('loss')))}"
        f"{_of(', limit ', _figure(details.get('limit')))}",
        "rewind": f"went back{_of(' to the checkpoint of step ', details.get('to'))}",
        "stop": "stopped as asked",
        "end": f"{details.get('status', 'ended')}{_of(': ', details.get('error'))}",
    }
    return known.get(kind, kind.replace("_", " "))


def _of(before: str, value: object) -> str:
    return "" if value is None or value == "" else f"{before}{value}"


def _figure(value: object) -> str | None:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _ended(details: Mapping[str, Any]) -> str:
    lost, code = details.get("lost_ranks"), details.get("exit_code")
    if isinstance(lost, list) and lost:
        return (
            f" after rank{'s' * (len(lost) > 1)} {', '.join(map(str, lost))} {'were' if len(lost) > 1 else 'was'} lost"
        )
    return _of(" after exit code ", code)


def _starts(starts: Sequence[Stretch]) -> Iterator[Event]:
    for number, stretch in enumerate(starts):
        # Both write the same line.
        text = "started or went back to a checkpoint" if number else "started"
        yield Event("start", stretch.step, None, text, {"position": stretch.position})


def _restarts(paths: RunPaths) -> Iterator[Event]:
    for held in read_restarts(paths.path) if (paths.path / RESTARTS_FILE).is_file() else ():
        time = None
        with suppress(ValueError):
            time = datetime.fromisoformat(str(held.get("time")))
        yield _event("restart", held.get("step"), time, held)


def _skips(paths: RunPaths) -> Iterator[Event]:
    with suppress(OSError):
        for held in LineReader(paths.skipped_batches).objects():
            kind = "spike" if held.get("reason") == "spike" else "skip"
            yield _event(kind, held.get("step"), None, held)


def _saves(paths: RunPaths) -> Iterator[Event]:
    for step, folder in checkpoints(paths):
        with suppress(OSError):
            # The manifest is the last file that is written into it.
            written = (folder / "manifest.json").stat().st_mtime
            yield Event("save", step, datetime.fromtimestamp(written, UTC), "saved a checkpoint")


def checkpoints(paths: RunPaths) -> list[tuple[int, Path]]:
    """Return step and folder of the checkpoints that are there, in order."""
    found = []
    with suppress(OSError):
        for folder in paths.checkpoint_folder.iterdir():
            number = folder.name.removeprefix("step_")
            if folder.name != number and number.isdecimal() and len(number) < 16:
                found.append((int(number), folder))
    return sorted(found)
