"""The page: everything that is shown of some runs, put into one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from trainer import __version__
from trainer.records.run_record import RunRecord, layout_of
from trainer.reporting.band import parameters_of
from trainer.reporting.charts import Chart, as_data, thinning_note
from trainer.reporting.curves import COLOURS, curves_of, hours_and_tokens, run_names
from trainer.reporting.differences import config_table, difference_table
from trainer.reporting.facts import TONES, counts, lead, measured_peak, status_words, tiles, typical
from trainer.reporting.findings import findings
from trainer.reporting.happenings import happenings
from trainer.reporting.memory_board import memory_board
from trainer.reporting.number_words import counted, duration, exact, short
from trainer.reporting.step_board import step_board
from trainer.reporting.sweep_board import Goal, sweep_board
from trainer.reporting.written_texts import written

ASSETS = Path(__file__).parent / "assets"
LIBRARY = "echarts.min.js"
SCRIPTS = ("core.js", "curves.js", "boards.js", "page.js")
MARK = "Trident report"
"""Name in the page's head by which a report is told from another file."""
SMOOTHING = 0.6
"""Weight of the past in smoothed lines when the page opens, as TensorBoard's."""
_FEWEST_TO_SMOOTH = 30


@dataclass(frozen=True)
class Content:
    """Everything that a page is about."""

    records: Sequence[RunRecord]
    title: str
    goal: Goal
    notes: Sequence[str] = ()
    """Sentences about what could not be read of the folder around the runs."""


def page(content: Content, now: datetime | None = None) -> str:
    """Return the page as HTML.

    Args:
        content: the runs.
        now: the time that the page says it was made at; None: this moment.
    """
    records, names = content.records, run_names(content.records)
    made = now or datetime.now(UTC)
    curves = curves_of(records)
    boards: dict[str, Any] = {}
    shown: dict[str, Any] = {
        "is_one": len(records) == 1,
        "title": content.title,
        "made": f"{made:%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "curves": {section: [_chart(chart) for chart in charts] for section, charts in curves.items()},
        "curve_notes": thinning_note([chart for charts in curves.values() for chart in charts]),
        "runs": [_run(record, names[run], run) for run, record in enumerate(records)],
        "happened": happenings(records),
        "notes": [*content.notes, *_notes(records, names)],
        "smoothing": SMOOTHING,
    }
    if len(records) == 1:
        shown |= _of_one(records[0], boards)
        shown["notes"] += shown.pop("more_notes")
    else:
        shown |= _of_several(content, names, boards)
    data = {
        "runs": [
            {"name": name, "axis": hours_and_tokens(record, len(records))}
            for name, record in zip(names, records, strict=True)
        ],
        "curves": as_data([chart for charts in curves.values() for chart in charts]),
        "lanes": shown["happened"].lanes if len(records) == 1 else [],
        "events": shown["happened"].drawn if len(records) == 1 else [],
        "breaks": shown["happened"].breaks,
        "boards": boards,
        "smoothing": _smoothing(records),
    }
    shown["smoothing"] = data["smoothing"]
    return _rendered(shown, data)


def _smoothing(records: Sequence[RunRecord]) -> float:
    return SMOOTHING if max(len(record.metrics) for record in records) >= _FEWEST_TO_SMOOTH else 0.0


def _chart(chart: Chart) -> dict[str, Any]:
    head, rows = chart.table()
    return {"chart": chart, "alt": chart.alt, "notes": chart.all_notes, "head": head, "rows": rows}


def _run(record: RunRecord, name: str, run: int) -> dict[str, Any]:
    """Return the facts of a run that the list of runs shows."""
    tone, sign = TONES[record.status.state]
    rate, mfu, peak = typical(record, "perf/tokens_per_second"), typical(record, "perf/mfu"), measured_peak(record)
    loss, held_out, parameters = (
        record.metrics.last("train/loss"),
        record.metrics.last("eval/loss"),
        parameters_of(record),
    )
    return {
        "name": name,
        "path": str(record.path),
        "colour": f"--c{run % COLOURS}",
        "tone": tone,
        "sign": sign,
        "state": record.status.state.value,
        "reason": status_words(record),
        "step": f"{record.status.step:,}" + (f" of {record.status.steps:,}" if record.status.steps else ""),
        "loss": f"{loss:.4g}" if loss is not None else "",
        "held_out": f"{held_out:.4g}" if held_out is not None else "",
        "speed": short(rate) if rate is not None else "",
        "mfu": f"{100 * mfu:.3g} %" if mfu is not None else "",
        "memory": short(peak) if peak is not None else "",
        "layout": layout_of(record.plan, record.config),
        "parameters": short(parameters) if parameters else "",
    }


def _notes(records: Sequence[RunRecord], names: Sequence[str]) -> list[str]:
    if len(records) == 1:
        return list(records[0].notes)
    return [f"{name}: {note}" for record, name in zip(records, names, strict=True) for note in record.notes]


def _of_one(record: RunRecord, boards: dict[str, Any]) -> dict[str, Any]:
    """Return what only the page of a single run has."""
    memory = memory_board(record)
    if memory is not None:
        boards["memory"] = memory.data
    step, notes = step_board(record)
    if step is not None:
        boards["step"] = step.data
    texts, text_notes = written(record.samples)
    return {
        "lead": lead(record),
        "tiles": tiles(record),
        "findings": findings(record),
        "memory": memory,
        "step": step,
        "texts": texts,
        "text_notes": text_notes,
        "config": config_table(record),
        "environment": dict(record.environment),
        "more_notes": notes,
    }


def _of_several(content: Content, names: Sequence[str], boards: dict[str, Any]) -> dict[str, Any]:
    """Return what only the page of several runs has."""
    records = content.records
    sweep = sweep_board(records, names, content.goal)
    if sweep is not None:
        boards["sweep"] = sweep.data
    best = [record.metrics.last(content.goal.metric) for record in records]
    numbers = [value for value in best if value is not None]
    word = f" from {exact(min(numbers))} to {exact(max(numbers))}" if numbers else " is in none of them"
    return {
        "lead": f"{counted(len(records), 'run')}: {counts(records)}. {content.goal.metric}{word}.",
        "sweep": sweep,
        "differences": difference_table(records),
    }


def _rendered(shown: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    library, scripts = _asset(LIBRARY), [_asset(name) for name in SCRIPTS]
    text: str = _template().render(
        **shown,
        mark=MARK,
        policy=_policy([library, *scripts]),
        style=_asset("page.css"),
        library=library,
        scripts=scripts,
        data=json_in_html(data),
        short=short,
        duration=duration,
    )
    return text.lstrip()


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return found.get_template("page.html")


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def json_in_html(data: object) -> str:
    """Return data as JSON that no character of it can end: a text of a model may hold `</script>`."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(scripts: Sequence[str]) -> str:
    """Return the page's security policy: no network, and no script but its own."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {hashes}; {rest}"
