"""The curves of a page: what is drawn of one run, and of several over each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.records.run_record import RunRecord
from trainer.reporting.band import band_line
from trainer.reporting.charts import Chart, Kind, Line, Style, line_of
from trainer.reporting.facts import hours_of, number_of, planned
from trainer.reporting.thinning import DRAWN_POINTS, Thinned, Values, evenly, rounded

LOSS, EVAL_LOSS = "train/loss", "eval/loss"
AXIS_POINTS = 400
_FEWEST_ON_AXIS = 60
COLOURS = 12
_FEWEST_POINTS = 300
MOST_LINES = 24
"""Lines of one chart; a page says how many it left out."""


@dataclass(frozen=True)
class Shown:
    """A chart of metrics whose names are known."""

    key: str
    title: str
    unit: str
    names: Sequence[str]
    """Names of the rows with their words behind a `|`; of several runs only the first one is drawn."""
    scale: float = 1.0
    is_smooth: bool = True
    is_log: bool = False
    from_zero: bool = False
    planned: str = ""
    """Name of what was predicted of it."""


SPEED = (
    Shown(
        "throughput", "Throughput", "tokens a second", ("perf/tokens_per_second|measured",), planned="tokens_per_second"
    ),
    Shown("mfu", "Model FLOPs utilisation", "% of the devices' peak", ("perf/mfu|measured",), 100.0, planned="mfu"),
    Shown("tflops", "Compute", "TFLOP/s a rank", ("perf/tflops_per_gpu|measured",), planned="tflops_per_gpu"),
    Shown(
        *("step_time", "Time of a step", "ms"),
        (
            "time/step_ms|mean",
            "time/step_p50_ms|median",
            "time/step_p99_ms|99th percentile",
            "time/data_wait_ms|wait for data",
        ),
        planned="step_ms",
    ),
    Shown(
        "bubble",
        "Pipeline bubble",
        "% of the ranks' time",
        ("pipeline/bubble_fraction|measured",),
        100.0,
        planned="bubble_fraction",
    ),
)
OPTIMISATION = (
    Shown("grad_norm", "Gradient norm", "L2 before clipping", ("train/grad_norm|gradient norm",), is_log=True),
    Shown(
        "learning_rate",
        "Learning rate",
        "per step",
        ("train/learning_rate|learning rate",),
        is_smooth=False,
        from_zero=True,
    ),
)
_PATTERNS = (
    ("sources", "Loss by source", "nats a token", re.compile(r"loss/(?P<name>.+)")),
    ("eval_sources", "Held-out loss by source", "nats a token", re.compile(r"eval/loss/(?P<name>.+)")),
    ("tasks", "Tasks", "score", re.compile(r"eval/(?P<name>[^/]+/.+)")),
    ("router", "Router load", "as logged", re.compile(r"(?:train/)?(?:router|moe|expert)s?/(?P<name>.+)")),
)
_GROUPS = re.compile(r"(?<![\w.])(?:\w+\.)+(?=\w+=)")
_HIDDEN = re.compile(r"(plan/|data/sample_ledger|train/tokens_seen|time/slowest_rank$|time/step_p95_ms)")
"""Rows that are no curve of their own: predictions, hashes, numbers of ranks."""


def points_for(runs: int) -> int:
    """Return the points of a line, so that a page of many runs stays small."""
    return max(_FEWEST_POINTS, DRAWN_POINTS // max(1, runs))


def curves_of(records: Sequence[RunRecord]) -> dict[str, list[Chart]]:
    """Return the charts of a page by section: loss, speed, optimisation, data, more."""
    sections: dict[str, list[Chart]] = {"loss": [], "speed": [], "optimisation": [], "data": [], "more": []}
    sections["loss"] += _losses(records)
    taken = {LOSS, EVAL_LOSS}
    for section, shown in (("speed", SPEED), ("optimisation", OPTIMISATION)):
        for one in shown:
            taken |= {name.partition("|")[0] for name in one.names}
            chart = _known(one, records)
            # Where the peak of a device is not known, FLOPs stand in for their share of it.
            if chart is not None and not (
                one.key == "tflops" and any(found.key == "mfu" for found in sections["speed"])
            ):
                sections[section].append(chart)
    names = list(dict.fromkeys(name for record in records for name in record.metrics.names if name not in taken))
    if len(records) == 1:
        for key, title, unit, pattern in _PATTERNS:
            found = {name: match["name"] for name in names if (match := pattern.fullmatch(name))}
            sections["data"] += _family(key, title, unit, records[0], found)
            names = [name for name in names if name not in found]
    sections["more"] = list(_rest(records, names))
    return sections


def _losses(records: Sequence[RunRecord]) -> Iterator[Chart]:
    """Yield the chart of the loss; of several runs another one of the held-out loss."""
    points = points_for(len(records))
    notes: list[str] = []
    if len(records) == 1:
        training = line_of("training", 0, records[0].metrics.series(LOSS), points)
        held_out = line_of("held out", 0, records[0].metrics.series(EVAL_LOSS), points, Style(Kind.points, 1))
        gone = line_of("left out", 0, ordered(records[0].discarded.series(LOSS)), points, Style(Kind.left_out, 4))
        lines = [*_some(training), *_some(held_out), *_some(gone)]
        if gone is not None:
            notes.append("Left out: rows of steps that were trained again later, after a rewind or a restart.")
        if lines:
            band, told = band_line(records[0], max(max(line.drawn.values) for line in lines))
            yield Chart("loss", "Loss", "nats a token", [*lines, *_some(band)], True, True, notes=[*notes, *told])
        return
    names = run_names(records)
    for key, title, name, kind in (
        ("loss", "Loss", LOSS, Kind.line),
        ("eval_loss", "Held-out loss", EVAL_LOSS, Kind.points),
    ):
        lines = []
        for run, record in enumerate(records[:MOST_LINES]):
            style = Style(kind, run % COLOURS, dash=run // COLOURS % 3)
            lines += _some(line_of(names[run], run, record.metrics.series(name), points, style))
        if lines:
            yield _with_count(Chart(key, title, "nats a token", lines, True, key == "loss"), records)


def ordered(series: tuple[np.ndarray, Values]) -> tuple[np.ndarray, Values]:
    """Return a series in the order of its steps."""
    steps, values = series
    order = np.argsort(steps, kind="stable")
    return steps[order], values[order]


def _style(run: int, is_one: bool) -> Style:
    return Style() if is_one else Style(Kind.line, run % COLOURS, dash=run // COLOURS % 3)


def _some(line: Line | None) -> list[Line]:
    return [] if line is None else [line]


def _known(shown: Shown, records: Sequence[RunRecord]) -> Chart | None:
    lines: list[Line] = []
    is_one, points, names = len(records) == 1, points_for(len(records)), run_names(records)
    for run, record in enumerate(records[:MOST_LINES]):
        for number, named in enumerate(shown.names if is_one else shown.names[:1]):
            name, _, words = named.partition("|")
            steps, values = record.metrics.series(name)
            style = Style(Kind.line, number) if is_one else _style(run, is_one)
            title = words if is_one else names[run]
            lines += _some(line_of(title, run, (steps, values * shown.scale), points, style))
    if not lines:
        return None
    chart = Chart(shown.key, shown.title, shown.unit, lines, False, shown.is_smooth, shown.is_log, shown.from_zero)
    if not is_one:
        return _with_count(chart, records)
    expected = planned(records[0], shown.planned) if shown.planned else None
    if expected is not None:
        ends = [lines[0].drawn.steps[0], lines[0].drawn.steps[-1]]
        flat = Thinned(ends, [float(f"{expected * shown.scale:.6g}")] * 2)
        chart = replace(chart, lines=[*lines, Line("predicted", 0, flat, Kind.dash, 0, "--band")])
    clip = number_of(records[0].config.get("optimizer.grad_clip"))
    if shown.key == "grad_norm" and clip is not None and clip > 0:
        chart = replace(chart, limit=clip, limit_name=f"clipped above {clip:g}")
    return chart


def _with_count(chart: Chart, records: Sequence[RunRecord]) -> Chart:
    if len(records) <= MOST_LINES:
        return chart
    return replace(chart, notes=[*chart.notes, f"The first {MOST_LINES} of {len(records)} runs are drawn."])


def _family(key: str, title: str, unit: str, record: RunRecord, found: dict[str, str]) -> Iterator[Chart]:
    """Yield the chart of all rows of one kind of a run, if there are any."""
    points = max(_FEWEST_POINTS, DRAWN_POINTS // max(1, len(found)))
    lines: list[Line] = []
    for number, (name, words) in enumerate(list(found.items())[:MOST_LINES]):
        kind = Kind.points if name.startswith("eval/") else Kind.line
        style = Style(kind, number % COLOURS, dash=number // COLOURS % 3)
        lines += _some(line_of(words, 0, record.metrics.series(name), points, style))
    notes = [f"The first {MOST_LINES} of {len(found)} are drawn."] if len(found) > MOST_LINES else []
    if lines:
        yield Chart(key, title, unit, lines, is_smooth=not key.startswith(("eval", "tasks")), notes=notes)


def _rest(records: Sequence[RunRecord], names: Sequence[str]) -> Iterator[Chart]:
    """Yield a chart for each other name; those of stages and nodes share one for all of them."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if _HIDDEN.match(name):
            continue
        place = re.fullmatch(r"(?P<before>[^/]+)/(?P<one>stage|node)(?P<number>\d+)/(?P<what>.+)", name)
        if place:
            title = f"{place['before']}/{place['one']}<k>/{place['what']}"
            groups.setdefault(title, []).append((name, f"{place['one']} {place['number']}"))
        else:
            groups.setdefault(name, []).append((name, name.rpartition("/")[2]))
    is_one, runs = len(records) == 1, run_names(records)
    taken: set[str] = set()
    for title, members in groups.items():
        lines: list[Line] = []
        points = max(_FEWEST_POINTS, DRAWN_POINTS // (len(members) * len(records)))
        for run, record in enumerate(records[:MOST_LINES]):
            for number, (name, words) in enumerate(members[:MOST_LINES] if is_one else members[:1]):
                style = (
                    Style(Kind.line, number % COLOURS, dash=number // COLOURS % 3) if is_one else _style(run, is_one)
                )
                lines += _some(line_of(words if is_one else runs[run], run, record.metrics.series(name), points, style))
        if lines:
            key = "more_" + re.sub(r"\W+", "_", title)
            while key in taken:
                key += "_"
            taken.add(key)
            left_out = len(members) - MOST_LINES
            notes = [f"{left_out} more are not drawn."] if left_out > 0 else []
            yield Chart(key, title, "as logged", lines, notes=notes)


def run_names(records: Sequence[RunRecord]) -> list[str]:
    """Return a name for each run: that of its folder, or as much of its path as tells it from the others."""
    parts = [record.path.parts for record in records]
    depth = 1
    most = max(len(one) for one in parts)
    while depth < most and len({one[-depth:] for one in parts}) < len(set(parts)):
        depth += 1
    names = ["/".join(one[-depth:]) for one in parts]
    # Folders of a sweep are named key=value,...: the last part of a key says enough where it is no other's.
    short = [_GROUPS.sub("", name) for name in names]
    return short if len(set(short)) == len(set(names)) else names


def hours_and_tokens(record: RunRecord, runs: int = 1) -> dict[str, list[float]]:
    """Return the places on the axes of a page of some runs: steps, with tokens read and hours in steps behind them."""
    steps, _ = record.metrics.series("time/step_ms")
    token_steps, tokens = record.metrics.series("train/tokens_seen")
    known = record.metrics.steps
    places = known[evenly(len(known), max(_FEWEST_ON_AXIS, AXIS_POINTS // runs))] if len(known) else known
    found: dict[str, list[float]] = {"steps": places.tolist(), "tokens": [], "hours": []}
    for name, at, values in (("tokens", token_steps, tokens), ("hours", steps, hours_of(record))):
        finite = np.isfinite(values)
        if finite.any():
            found[name] = rounded(np.interp(places, at[finite], values[finite]))
    return found
