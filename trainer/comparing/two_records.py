"""`trident compare A B`: reads both runs, finds what differs, and says it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from trainer.comparing.answer import answer
from trainer.comparing.differing import (
    LEDGER,
    Cost,
    Parting,
    Setting,
    costs,
    differing_environment,
    differing_events,
    differing_settings,
    partings,
)
from trainer.comparing.samples_of_both import SameSamples, same_samples
from trainer.config.keys import shown_value
from trainer.config.places import absolute_path
from trainer.log import say, tell
from trainer.metrics.figures import duration
from trainer.records.happened import Event
from trainer.records.printable import printable
from trainer.records.run_record import RunRecord, read_record

_WIDEST_VALUE = 40
_MOST_ROWS = 12
"""Number of rows of a table, and of events, that are shown; --json has all."""


@dataclass(frozen=True)
class TwoRecords:
    """Two runs and everything in which they differ."""

    a: RunRecord
    b: RunRecord
    tolerance: float
    settings: Sequence[Setting]
    environment: Sequence[Setting]
    samples: SameSamples
    results: Sequence[Parting]
    costs: Sequence[Cost]
    events: Sequence[tuple[str, Event]]
    """Turns that only one of them took, each behind "A" or "B"."""


def compare_verb(words: Sequence[str], tolerance: float, as_json: bool) -> int:
    """Compare the runs in two folders, print what differs, and return exit code 0.

    Raises:
        ConfigError: a folder is not that of a run.
    """
    a, b = (read_record(absolute_path(word, "RUN")) for word in words)
    found = compare_records(a, b, tolerance)
    if as_json:
        tell(json.dumps(_as_json(found), indent=1))
        return 0
    for line in _told(found):
        say(printable(line))
    return 0


def compare_records(a: RunRecord, b: RunRecord, tolerance: float) -> TwoRecords:
    """Return everything in which two runs differ."""
    return TwoRecords(
        a=a,
        b=b,
        tolerance=tolerance,
        settings=differing_settings(a, b),
        environment=differing_environment(a, b),
        samples=same_samples(a, b),
        results=partings(a.metrics, b.metrics, tolerance),
        costs=costs(a.metrics, b.metrics),
        events=differing_events(a.events, b.events),
    )


def _told(found: TwoRecords) -> Iterator[str]:
    for side, record in (("A", found.a), ("B", found.b)):
        status = record.status
        of = f" of {status.steps:,}" if status.steps else ""
        age = f", {duration(status.age_s)} ago" if status.age_s is not None else ""
        yield f"{side}  {record.path}: {status.state.value} at step {status.step:,}{of}{age}"
        yield from (f"   note: {note}" for note in record.notes)
    yield from _section("config", _settings(found.settings))
    yield from _section("environment", _settings(found.environment))
    yield from _section("samples", _samples(found.samples))
    yield from _section("results", _results(found))
    yield from _section("cost of a step, medians", _costs(found.costs))
    yield from _section("turns that one of them took", _events(found.events))
    yield ""
    yield from answer(found)


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {line}" for line in lines)


def _settings(settings: Sequence[Setting]) -> Iterator[str]:
    if not settings:
        yield "the same"
    rows = [(one.key, _value(one.a), _value(one.b), "" if one.decides else "decides no result") for one in settings]
    yield from _table([("", "A", "B", ""), *rows] if rows else [])


def _samples(samples: SameSamples) -> Iterator[str]:
    if samples.why_unknown:
        yield f"not known: {samples.why_unknown}"
        return
    if samples.same_hash:
        yield f"the same hash behind step {samples.same_hash}: up to it both read the same tokens"
    if samples.first_difference is None:
        yield f"the same in all {samples.last} steps that both have read"
        return
    if samples.is_exact:
        yield f"step {samples.first_difference} is the first whose samples differ"
    else:
        yield f"the first step whose samples differ is one of {samples.same_hash + 1} to {samples.first_difference}"
    yield from (f"- {reason}" for reason in samples.reasons)


def _results(found: TwoRecords) -> Iterator[str]:
    if not found.results:
        yield "no step was logged by both"
        return
    rows = [("", "steps of both", "a bit differs", f"by over {found.tolerance:g}", "A there", "B there")]
    for one in found.results[:_MOST_ROWS]:
        beyond = "-" if one.beyond is None else f"at step {one.beyond:,}"
        first = "never" if one.first is None else f"from step {one.first:,}"
        rows.append((one.name, f"{one.common:,}", first, beyond, _figure(one, one.a), _figure(one, one.b)))
    yield from _table(rows)
    yield from _more(len(found.results))


def _figure(parting: Parting, value: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{int(value):x}" if parting.name == LEDGER and math.isfinite(value) else f"{value:.7g}"


def _costs(found: Sequence[Cost]) -> Iterator[str]:
    if not found:
        yield "not measured by both"
        return
    rows = [(one.name, f"{one.a:.4g}", f"{one.b:.4g}", _change(one.change)) for one in found]
    yield from _table([("", "A", "B", ""), *rows])


def _change(change: float) -> str:
    return "" if math.isnan(change) else f"{change:+.1%}"


def _events(events: Sequence[tuple[str, Event]]) -> Iterator[str]:
    if not events:
        yield "none"
    for side, event in events[:_MOST_ROWS]:
        yield f"{side}  {'' if event.step is None else f'step {event.step:,}: '}{event.text}"
    yield from _more(len(events))


def _more(count: int) -> Iterator[str]:
    if count > _MOST_ROWS:
        yield f"and {count - _MOST_ROWS} more; --json has all"


def _value(value: object) -> str:
    text = " ".join(shown_value(value).split()) or "''"
    return text if len(text) <= _WIDEST_VALUE else f"{text[: _WIDEST_VALUE - 3]}..."


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _as_json(found: TwoRecords) -> dict[str, Any]:
    sides = {
        name: {
            "path": str(record.path),
            "name": record.name,
            "status": _plain(asdict(record.status)),
            "notes": list(record.notes),
        }
        for name, record in (("a", found.a), ("b", found.b))
    }
    plain: dict[str, Any] = _plain(
        {
            "tolerance": found.tolerance,
            "config": [asdict(one) for one in found.settings],
            "environment": [asdict(one) for one in found.environment],
            "samples": asdict(found.samples),
            "results": [asdict(one) for one in found.results],
            "costs": [{**asdict(one), "change": one.change} for one in found.costs],
            "events": [
                {"run": side, "kind": one.kind, "step": one.step, "text": one.text} for side, one in found.events
            ],
            "answer": list(answer(found)),
        }
    )
    return {**sides, **plain}


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: a number that is not finite is null."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
