"""The figures at the head of a page: what a run reached, how fast it was, and what had been predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.planner.record import PREDICTION
from trainer.records.run_record import RunRecord, layout_of
from trainer.records.run_status import State
from trainer.reporting.band import parameters_of
from trainer.reporting.number_words import counted, duration, in_one_unit, short
from trainer.reporting.thinning import Values

SPARK_POINTS = 60
_SPARK_CUT = 0.04
_SPARK_FLAT = 0.05
"""Smallest range of a sparkline, relative to its middle: below it, scatter would look like a course."""
_LONG_NUMBER = 100_000
_SPARK_WIDTH, _SPARK_HEIGHT = 200, 34
TONES: Mapping[State, tuple[str, str]] = {
    State.finished: ("good", "check"),
    State.running: ("live", "play"),
    State.stopped: ("warn", "pause"),
    State.failed: ("bad", "cross"),
    State.crashed: ("bad", "cross"),
    State.unknown: ("plain", "question"),
}
"""Tone of a state, and its sign: no colour stands alone."""


@dataclass(frozen=True)
class Tile:
    """One figure at the head of a page."""

    title: str
    value: str
    unit: str = ""
    below: str = ""
    area: str = ""
    """Outline of its course as an SVG path, to be filled; empty: none."""
    stroke: str = ""


def number_of(value: object) -> float | None:
    """Return a value as a finite number; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def prediction(record: RunRecord) -> Mapping[str, Any]:
    """Return what was predicted of a run, as plan.json has it; empty if nothing was."""
    held = (record.plan or {}).get(PREDICTION)
    return held if isinstance(held, dict) else {}


def planned(record: RunRecord, name: str) -> float | None:
    """Return a predicted number that is above 0; None if there is none. `step_ms`: the time of a step."""
    held = prediction(record)
    if name == "step_ms":
        seconds = number_of(held.get("step_time_s"))
        return 1000 * seconds if seconds else None
    return number_of(held.get(name)) or None


def typical(record: RunRecord, name: str) -> float | None:
    """Return the median of a metric over the rows behind the first two, which warm up; None if it has no value."""
    values = record.metrics.series(name)[1]
    values = values[np.isfinite(values)]
    values = values[2:] if len(values) > 4 else values
    return float(np.median(values)) if len(values) else None


def tiles(record: RunRecord) -> list[Tile]:
    """Return the figures of a run in the order of the page."""
    return [*_losses(record), *_progress(record), *_speed(record), *_needs(record)]


def _losses(record: RunRecord) -> Iterator[Tile]:
    for name, title in (("train/loss", "Training loss"), ("eval/loss", "Held-out loss")):
        values = record.metrics.series(name)[1]
        values = values[np.isfinite(values)]
        if len(values):
            low = float(values.min())
            below = f"lowest {short(low)}" if low < values[-1] else "its lowest so far"
            yield Tile(title, f"{values[-1]:.4g}", "nats", below, *sparkline(values))


def _progress(record: RunRecord) -> Iterator[Tile]:
    status = record.status
    of = f"of {_steps(status.steps)}" if status.steps else "done"
    tokens = record.metrics.last("train/tokens_seen")
    yield Tile("Steps", _steps(status.step), of, f"{short(tokens)} tokens read" if tokens else "")
    wall_s = number_of((record.summary or {}).get("wall_time_s"))
    trained_s = float(hours_of(record)[-1] * 3600) if len(record.metrics.series("time/step_ms")[0]) else None
    if wall_s:
        share = f"{100 * min(1.0, trained_s / wall_s):.0f} % of it in steps" if trained_s else ""
        yield Tile("Time", *in_one_unit(wall_s), share)
    elif trained_s:
        yield Tile("Time in steps", *in_one_unit(trained_s))


def _steps(number: int) -> str:
    return f"{number:,}" if number < _LONG_NUMBER else short(number)


def _speed(record: RunRecord) -> Iterator[Tile]:
    rate = typical(record, "perf/tokens_per_second")
    if rate is not None:
        values = record.metrics.series("perf/tokens_per_second")[1]
        yield Tile("Throughput", short(rate), "tokens/s", _ratio(record, rate, "tokens_per_second"), *sparkline(values))
    mfu = typical(record, "perf/mfu")
    if mfu is not None:
        values = record.metrics.series("perf/mfu")[1]
        below = f"{100 * expected:.3g} % predicted" if (expected := planned(record, "mfu")) else ""
        yield Tile("MFU", f"{100 * mfu:.3g}", "%", below, *sparkline(values))
    step_ms = typical(record, "time/step_ms")
    if step_ms is not None:
        values = record.metrics.series("time/step_ms")[1]
        expected = planned(record, "step_ms")
        below = f"{duration(expected / 1000)} predicted" if expected else ""
        yield Tile("Step, median", *in_one_unit(step_ms / 1000), below, *sparkline(values))


def _needs(record: RunRecord) -> Iterator[Tile]:
    peak = measured_peak(record)
    if peak is not None:
        expected = planned(record, "peak_memory_gib")
        yield Tile("Peak memory", short(peak), "GiB a rank", f"{short(expected)} GiB predicted" if expected else "")


def measured_peak(record: RunRecord) -> float | None:
    """Return the most memory that a rank held, comparable with the prediction where there is one; in GiB."""
    stages = [
        name for name in record.metrics.names if name.startswith("memory/stage") and name.endswith("/peak_used_gib")
    ]
    for names in (stages, ["memory/peak_reserved_gib"], ["memory/peak_allocated_gib"]):
        found = [values[np.isfinite(values)] for name in names for values in (record.metrics.series(name)[1],)]
        peaks = [float(values.max()) for values in found if len(values)]
        if peaks:
            return max(peaks)
    return None


def _ratio(record: RunRecord, measured: float, name: str) -> str:
    expected = planned(record, name)
    return f"{measured / expected:.2f}x predicted" if expected else ""


def hours_of(record: RunRecord) -> Values:
    """Return the hours of training behind each row that has a time, without evaluations and saves.

    A row's time is the mean of the steps since the row before.
    """
    steps, step_ms = record.metrics.series("time/step_ms")
    step_ms = np.where(np.isfinite(step_ms), step_ms, 0.0)
    # A damaged row may hold a time beyond all numbers; it is infinite then, and not drawn.
    with np.errstate(over="ignore"):
        return np.cumsum(np.diff(steps, prepend=0) * step_ms) / 3.6e6


def sparkline(values: Values) -> tuple[str, str]:
    """Return the filled outline and the line of values, both empty if there are fewer than three.

    It shows means of stretches, and cuts off the few lowest and highest: it is a hint, and the chart below is exact.
    """
    values = values[np.isfinite(values)]
    if len(values) < 3:
        return "", ""
    means = np.array([part.mean() for part in np.array_split(values, min(SPARK_POINTS, len(values)))])
    low, high = (float(edge) for edge in np.quantile(means, (_SPARK_CUT, 1 - _SPARK_CUT)))
    spread = _SPARK_FLAT * abs(low + high) / 2
    low, high = min(low, (low + high - spread) / 2), max(high, (low + high + spread) / 2)
    flat = np.full(len(means), 0.5)
    heights = (high - np.clip(means, low, high)) / (high - low) if 0 < high - low < math.inf else flat
    across = _SPARK_WIDTH / (len(means) - 1)
    line = "L".join(
        f"{place * across:.1f} {3 + (_SPARK_HEIGHT - 6) * height:.1f}" for place, height in enumerate(heights)
    )
    return f"M0 {_SPARK_HEIGHT}L{line}L{_SPARK_WIDTH} {_SPARK_HEIGHT}Z", f"M{line}"


def lead(record: RunRecord) -> str:
    """Return a run in one sentence."""
    parameters, held = parameters_of(record), record.config.get("model.name")
    model = f"A model of {short(parameters)} parameters" if parameters else "A model"
    named = f" ({held})" if isinstance(held, str) and held else ""
    layout = layout_of(record.plan, record.config)
    ranks = world_size(record)
    where = f" on {counted(ranks, 'rank')}" if ranks else ""
    where += f" as {layout}" if layout and ranks != 1 else ""
    data = record.config.get("data.source")
    read = f", data: {data}" if isinstance(data, str) else ""
    dtype = record.config.get("precision.dtype")
    return f"{model}{named}{where}{f', {dtype}' if isinstance(dtype, str) else ''}{read}."


def world_size(record: RunRecord) -> int | None:
    """Return the number of ranks of a run's last start; None if no file says it."""
    for held, name in (
        ((record.summary or {}).get("layout"), "world_size"),
        ((record.plan or {}).get("layout"), "world_size"),
    ):
        if isinstance(held, dict) and isinstance(held.get(name), int):
            return int(held[name])
    return None


def status_words(record: RunRecord) -> str:
    """Return the reason of a run's state as a sentence."""
    status = record.status
    ago = f"; last sign {duration(status.age_s)} before this page" if status.age_s and not status.is_over else ""
    reason = f"{status.reason[:1].upper()}{status.reason[1:]}"
    return f"{reason}{ago}."


def counts(records: Sequence[RunRecord]) -> str:
    """Return how many runs of a page are in which state."""
    states = [record.status.state.value for record in records]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
