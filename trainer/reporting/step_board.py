"""The measured step of a pipeline on the page: every stage and micro-batch, with the schedule played beneath it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.schema import PipelineSchedule
from trainer.errors import first_line
from trainer.planner.orders import Work, trained_order
from trainer.planner.timeline import Costs, Deadlock, simulate
from trainer.profiling.measured_step import NO_PIPELINE, Span, StepTimeline, read_timeline
from trainer.records.run_record import RunRecord
from trainer.reporting.number_words import counted, exact
from trainer.reporting.thinning import evenly
from trainer.run_paths import RunPaths

KINDS: Mapping[str, tuple[str, str]] = {
    "forward": ("forward pass", "--c0"),
    "backward": ("backward pass", "--c2"),
    "wait": ("wait for another stage", "--c11"),
    "send": ("send", "--c3"),
    "receive": ("receive", "--c4"),
    "exchange": ("exchange of messages", "--c10"),
    "reduce": ("sum of gradients", "--c5"),
    "optimizer": ("optimizer", "--c1"),
    "data": ("wait for data", "--c8"),
    "load": ("load of the batch", "--c7"),
    "start": ("agreement on the batch", "--c9"),
}
"""Kind of a span -> its words and colour; the order is that of the legend."""
MOST_SPANS, MOST_RANKS = 40_000, 64


@dataclass(frozen=True)
class StepBoard:
    """The drawing of a step, and its numbers."""

    data: Mapping[str, Any]
    title: str
    alt: str
    head: list[str]
    rows: list[list[str]]
    kinds: list[tuple[str, str]]
    """Words and colour of each kind that occurs, for the legend."""
    notes: list[str]


def step_board(record: RunRecord) -> tuple[StepBoard | None, list[str]]:
    """Return the measured step of a run, or None if it has none, and what could not be read."""
    try:
        found = read_timeline(RunPaths(record.path).timeline)
    except (OSError, ValueError) as error:
        return None, [f"The timeline of a step cannot be drawn: {first_line(error)}"]
    if found is None or not found.spans:
        return None, []
    return _board(found), []


def _board(found: StepTimeline) -> StepBoard:
    every = [place.rank for place in found.ranks]
    ranks = [every[place] for place in evenly(len(every), MOST_RANKS)]
    kinds = [kind for kind in KINDS if any(span.kind == kind for span in found.spans)]
    kinds += sorted({span.kind for span in found.spans} - set(kinds))
    drawn = [span for span in found.spans if span.rank in set(ranks)]
    notes = [f"{len(ranks)} of {len(every)} ranks are drawn."] if len(ranks) < len(every) else []
    if len(drawn) > MOST_SPANS:
        notes.append(f"The {MOST_SPANS:,} longest of {len(drawn):,} spans are drawn.")
        drawn = sorted(drawn, key=lambda span: span.begin_ms - span.end_ms)[:MOST_SPANS]
    if found.clock_error_ms > 0:
        notes.append(f"The clocks of the ranks may differ by {exact(found.clock_error_ms)} ms.")
    planned = [] if len(ranks) < len(every) else _planned(found, kinds)
    data = {
        "kind": "timeline",
        "rows": [_row_name(found, rank) for rank in ranks],
        "duration_ms": round(found.duration_ms, 3),
        "kinds": [
            {
                "name": words,
                "colour": colour,
                "is_pass": kind in ("forward", "backward"),
                "is_wait": kind in ("wait", "data"),
            }
            for kind, (words, colour) in ((kind, _look(kind)) for kind in kinds)
        ],
        "spans": [_span(span, ranks.index(span.rank), kinds.index(span.kind)) for span in drawn],
        "planned": planned,
    }
    head, rows = _table(found, kinds)
    return StepBoard(data, _title(found), _alt(found), head, rows, [_look(kind) for kind in kinds], notes)


def _title(found: StepTimeline) -> str:
    parts = [f"Step {found.step:,}", f"{exact(round(found.duration_ms, 1))} ms"]
    if found.schedule != NO_PIPELINE:
        parts.append(f"schedule {found.schedule}")
    parts.append(counted(found.micro_batches, "micro-batch", "micro-batches"))
    if found.bubble_fraction is not None:
        parts.append(f"{100 * found.bubble_fraction:.0f} % without a pass")
    return " · ".join(parts)


def _look(kind: str) -> tuple[str, str]:
    return KINDS.get(kind, (kind.replace("_", " "), "--c6"))


def _row_name(found: StepTimeline, rank: int) -> str:
    stages = next(place.stages for place in found.ranks if place.rank == rank)
    if len(stages) == 1:
        return f"stage {stages[0]}"
    return f"stages {', '.join(map(str, stages))}"


def _span(span: Span, row: int, kind: int) -> list[Any]:
    micro_batch = -1 if span.micro_batch is None else span.micro_batch
    stage = -1 if span.stage is None else span.stage
    found: list[Any] = [row, kind, round(span.begin_ms, 3), round(span.end_ms, 3), micro_batch, stage]
    if span.messages:
        told = [
            f"{one.direction} {one.work} of micro-batch {one.micro_batch}, stage {one.stage}" for one in span.messages
        ]
        found.append("; ".join(told))
    return found


def _planned(found: StepTimeline, kinds: list[str]) -> list[list[Any]]:
    """Return the passes as the schedule alone would have them, each as long as its median was; none for one stage."""
    forward, backward = found.pass_ms("forward"), found.pass_ms("backward")
    if found.schedule == NO_PIPELINE or not all(math.isfinite(time) for time in (*forward, *backward)):
        return []
    try:
        order = trained_order(PipelineSchedule(found.schedule), len(found.ranks), found.micro_batches)
        played = simulate(order, Costs(forward, backward))
    except (ValueError, Deadlock):
        # A schedule of another version, or a step whose passes are not those of its schedule.
        return []
    first = min(span.begin_ms for span in found.spans if span.kind in ("forward", "backward"))
    names = {Work.forward: kinds.index("forward"), Work.backward: kinds.index("backward")}
    return [
        [
            row,
            names[span.what.work],
            round(first + span.begin, 3),
            round(first + span.end, 3),
            span.what.micro_batch,
            span.what.stage,
        ]
        for row, spans in enumerate(played.ranks)
        for span in spans
        if span.what.work in names
    ]


def _table(found: StepTimeline, kinds: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return the milliseconds of every kind for each rank, and the share in which it ran no pass."""
    head = ["stage", "rank", *(_look(kind)[0] for kind in kinds), "no pass"]
    rows = []
    for place in found.ranks:
        spans = [span for span in found.spans if span.rank == place.rank]
        times = {kind: sum(span.end_ms - span.begin_ms for span in spans if span.kind == kind) for kind in kinds}
        busy = times.get("forward", 0.0) + times.get("backward", 0.0)
        idle = f"{100 * (1 - busy / found.duration_ms):.0f} %" if found.duration_ms > 0 else ""
        stages = ", ".join(map(str, place.stages))
        rows.append([stages, str(place.rank), *(f"{times[kind]:,.1f} ms" for kind in kinds), idle])
    return head, rows


def _alt(found: StepTimeline) -> str:
    bubble = found.bubble_fraction
    passes = sum(span.kind in ("forward", "backward") for span in found.spans)
    parts = [
        counted(found.stages, "stage"),
        counted(found.micro_batches, "micro-batch", "micro-batches"),
        f"{counted(passes, 'pass', 'passes')} in {exact(round(found.duration_ms, 1))} ms",
    ]
    told = f"Timeline of step {found.step:,}: {', '.join(parts)}."
    if bubble is None:
        return told
    return f"{told} {100 * bubble:.0f} % of the ranks' time between the first pass and the last is without a pass."
