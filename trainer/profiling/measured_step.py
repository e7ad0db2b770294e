"""The measured timeline of one step, as a value and as the file timeline.json in a run's folder. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from trainer.profiling.names import BACKWARD, FORWARD, OPTIMIZER

VERSION = 1
NO_PIPELINE = "none"
"""Schedule of a run with one stage."""
DATA, START, LOAD, REDUCE = "data", "start", "load", "reduce"
SEND, RECEIVE, EXCHANGE, WAIT = "send", "receive", "exchange", "wait"
KINDS = (DATA, START, LOAD, FORWARD, BACKWARD, WAIT, SEND, RECEIVE, EXCHANGE, REDUCE, OPTIMIZER)
"""Kinds of spans; docs/profiling.md says what each is."""
COLUMNS = ("rank", "kind", "stage", "micro_batch", "begin_ms", "end_ms", "messages")


class Message(NamedTuple):
    """A message as one of its ends sees it."""

    direction: str
    """send | receive."""
    work: str
    """forward: the output of a pass travels; backward: the gradient of its input."""
    stage: int
    """Stage of the pass whose result travels."""
    micro_batch: int

    @property
    def other_end(self) -> Message:
        """The same message as the other end sees it."""
        return self._replace(direction=RECEIVE if self.direction == SEND else SEND)


class Span(NamedTuple):
    """Something that a rank did without a break."""

    rank: int
    kind: str
    """One of `KINDS`."""
    stage: int | None
    micro_batch: int | None
    """Counted from 0."""
    begin_ms: float
    end_ms: float
    messages: tuple[Message, ...] = ()
    """Messages that it is about: of a send, a receive, an exchange, and of the wait in front of it."""


@dataclass(frozen=True)
class RankPlace:
    """A rank that was measured."""

    rank: int
    host: str
    stages: tuple[int, ...]
    """Its stages; DualPipeV's ranks have two."""


@dataclass(frozen=True)
class StepTimeline:
    """The measured timeline of one step, on one clock: that of the first rank, from the begin of the step on."""

    step: int
    time: datetime
    """Wall-clock time of the measurement, UTC."""
    schedule: str
    """Value of `PipelineSchedule`, or `NO_PIPELINE`."""
    micro_batches: int
    device: str
    """cpu | cuda."""
    clock_error_ms: float
    """Largest error of a time of one rank against another's; 0 for ranks of one machine."""
    ranks: tuple[RankPlace, ...]
    """One rank of each pipeline rank, in order."""
    spans: tuple[Span, ...]
    """Sorted by rank as in `ranks`, then by begin; those of a rank do not overlap."""

    @property
    def stages(self) -> int:
        """Number of stages."""
        return sum(len(place.stages) for place in self.ranks)

    @property
    def duration_ms(self) -> float:
        """Time until the last span ends."""
        return max((span.end_ms for span in self.spans), default=0.0)

    @property
    def bubble_fraction(self) -> float | None:
        """Share of the ranks' time, from the first pass to the last, in which no pass runs; None for one stage."""
        passes = [span for span in self.spans if span.kind in (FORWARD, BACKWARD)]
        if len(self.ranks) < 2 or not passes:
            return None
        whole = max(span.end_ms for span in passes) - min(span.begin_ms for span in passes)
        busy = sum(span.end_ms - span.begin_ms for span in passes)
        return 1 - busy / max(len(self.ranks) * whole, 1e-9)

    def pass_ms(self, kind: str) -> tuple[float, ...]:
        """Return the median time of a pass of each stage, NaN for one that has none; `kind`: forward | backward."""
        found: dict[int, list[float]] = {stage: [] for stage in range(self.stages)}
        for span in self.spans:
            if span.kind == kind and span.stage is not None:
                found[span.stage].append(span.end_ms - span.begin_ms)
        return tuple(median(times) if times else math.nan for times in found.values())

    def to_json(self) -> str:
        """Return the content of the file."""
        bubble = self.bubble_fraction
        head: dict[str, object] = {
            "version": VERSION,
            "step": self.step,
            "time": self.time.isoformat(timespec="milliseconds"),
            "schedule": self.schedule,
            "micro_batches": self.micro_batches,
            "stages": self.stages,
            "device": self.device,
            "duration_ms": round(self.duration_ms, 3),
            "bubble_fraction": None if bubble is None else round(bubble, 4),
            "clock_error_ms": round(self.clock_error_ms, 3),
            "ranks": [{"rank": one.rank, "host": one.host, "stages": one.stages} for one in self.ranks],
            "columns": COLUMNS,
        }
        rows = ",\n".join(json.dumps(_row(span), separators=(",", ":")) for span in self.spans)
        return f'{json.dumps(head)[:-1]}, "spans": [\n{rows}\n]}}\n'


def _row(span: Span) -> list[object]:
    times = [round(span.begin_ms, 3), round(span.end_ms, 3)]
    return [span.rank, span.kind, span.stage, span.micro_batch, *times, span.messages or None]


def read_timeline(path: Path) -> StepTimeline | None:
    """Return the timeline in a file; None if there is no such file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no timeline that this version can read; the text says why.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a timeline must be JSON, but {path} is not: {error}") from error
    if not isinstance(found, dict) or found.get("version") != VERSION:
        version = found.get("version") if isinstance(found, dict) else None
        raise ValueError(f"a timeline must be of version {VERSION}, but that of {path} is {version!r}")
    try:
        return _parsed(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a timeline must be whole, but {path} is not: {type(error).__name__}: {error}") from error


def _parsed(found: Mapping[str, Any]) -> StepTimeline:
    places = tuple(
        RankPlace(int(one["rank"]), str(one["host"]), tuple(int(stage) for stage in one["stages"]))
        for one in found["ranks"]
    )
    stages = sorted(stage for place in places for stage in place.stages)
    if len(stages) != found["stages"] or stages != list(range(len(stages))):
        raise ValueError(f"each of {found['stages']} stages must have a rank, but they are of {stages}")
    if list(found["columns"]) != list(COLUMNS):
        raise ValueError(f"columns must be {', '.join(COLUMNS)}, but are {found['columns']}")
    ranks = {place.rank for place in places}
    micro_batches = int(found["micro_batches"])
    return StepTimeline(
        step=int(found["step"]),
        time=datetime.fromisoformat(found["time"]),
        schedule=str(found["schedule"]),
        micro_batches=micro_batches,
        device=str(found["device"]),
        clock_error_ms=float(found["clock_error_ms"]),
        ranks=places,
        spans=tuple(_span(row, ranks, len(stages), micro_batches) for row in found["spans"]),
    )


def _span(row: Sequence[Any], ranks: set[int], stages: int, micro_batches: int) -> Span:
    rank, kind, stage, micro_batch, begin, end, messages = row
    span = Span(
        rank,
        kind,
        stage,
        micro_batch,
        float(begin),
        float(end),
        tuple(Message(str(way), str(work), int(source), int(number)) for way, work, source, number in messages or ()),
    )
    is_known = rank in ranks and kind in KINDS and -math.inf < span.begin_ms <= span.end_ms < math.inf
    is_known = is_known and (stage is None or 0 <= stage < stages)
    if not is_known or not (micro_batch is None or 0 <= micro_batch < micro_batches):
        raise ValueError(f"a span must be of a rank, kind, stage, micro-batch and time that exist, but is {row}")
    return span
