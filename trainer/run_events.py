"""A run's history in events.jsonl: starts, saves, skipped batches, rewinds and ends, each with its step and its time.

Lines are only ever appended: steps that were taken back and trained again keep their events. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from trainer.files import append_line
from trainer.run_paths import EVENTS


class EventKind(Enum):
    """Kinds of events; docs/metrics.md says what each one's step and details are."""

    start = "start"
    restart = "restart"
    save = "save"
    save_failed = "save_failed"
    evaluation = "evaluation"
    skip = "skip"
    spike = "spike"
    rewind = "rewind"
    end = "end"


@dataclass(frozen=True)
class Event:
    """An event as it stands in the file, which may be that of another version."""

    kind: str
    """Value of an `EventKind`, or of a kind that this version does not know."""
    step: int | None
    """None: it is not recorded."""
    time: datetime | None
    """Wall-clock time, UTC; None: it is not recorded."""
    details: Mapping[str, object]
    """All other entries."""


def append_event(
    run_dir: Path, kind: EventKind, step: int, details: Mapping[str, object] | None = None, at: datetime | None = None
) -> None:
    """Append an event and make it durable. One process calls it at a time.

    Args:
        run_dir: the run's folder.
        kind: kind of the event.
        step: step of the event.
        details: further entries, plain values; a number that is not finite becomes null, which JSON can hold.
        at: its time; None: now.

    Raises:
        StorageError: the disk is full, read-only, or not writable by this user.
    """
    time = (at or datetime.now(UTC)).isoformat(timespec="milliseconds")
    more = {name: _plain(one) for name, one in (details or {}).items()}
    line = {"kind": kind.value, "step": step, "time": time, **more}
    append_line(run_dir / EVENTS, json.dumps(line, allow_nan=False))


def read_events(run_dir: Path) -> list[Event]:
    """Return the events of a run, oldest first, without lines that are not whole. No file: none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        lines = (run_dir / EVENTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [event for event in map(_parsed, lines) if event is not None]


def _parsed(line: str) -> Event | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        return None
    kind, step = found.pop("kind"), found.pop("step", None)
    is_number = isinstance(step, int) and not isinstance(step, bool)
    return Event(kind, step if is_number else None, _moment(found.pop("time", None)), found)


def _moment(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
