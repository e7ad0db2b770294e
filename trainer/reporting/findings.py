"""Findings: each check is a line with a verdict, so that nobody has to read every curve for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trainer.metrics.straggler import LEAST_WAIT_SHARE
from trainer.planner.record import LEAST_FULLER, LEAST_SLOWER
from trainer.records.run_record import RunRecord
from trainer.records.run_status import State
from trainer.reporting.facts import TONES, measured_peak, number_of, planned, prediction, status_words, typical
from trainer.reporting.number_words import counted, duration, exact, short

GOOD, WARN, BAD, PLAIN = "good", "warn", "bad", "plain"
SIGNS = {GOOD: "check", WARN: "warning", BAD: "cross", PLAIN: "info"}
_OFTEN_CLIPPED = 0.5
"""Share of clipped steps from which on the limit decides the length of most updates."""
_OVER_FITTED = 0.02
"""Rise of the held-out loss over its lowest value, relative to it, that no longer is scatter of a few batches."""


@dataclass(frozen=True)
class Finding:
    """One line about a run."""

    tone: str
    """good, warn, bad or plain."""
    title: str
    text: str

    @property
    def sign(self) -> str:
        """Name of its sign."""
        return SIGNS[self.tone]


def findings(record: RunRecord) -> list[Finding]:
    """Return what is to be said of a run, worst first."""
    checks: tuple[Callable[[RunRecord], Iterator[Finding]], ...] = (
        *(_end, _interruptions, _skips, _loss, _held_out, _speed, _memory, _data_wait, _stragglers, _clipping, _saves),
    )
    found = [finding for check in checks for finding in check(record)]
    return sorted(found, key=lambda one: (BAD, WARN, GOOD, PLAIN).index(one.tone))


def _end(record: RunRecord) -> Iterator[Finding]:
    status = record.status
    tone = TONES[status.state][0]
    far = f"step {status.step:,} of {status.steps:,}" if status.steps else f"step {status.step:,}"
    yield Finding(
        PLAIN if tone == "live" else tone, f"{status.state.value.capitalize()} at {far}", status_words(record)
    )


def _count(record: RunRecord, kind: str) -> int:
    return sum(event.kind == kind for event in record.events)


def _interruptions(record: RunRecord) -> Iterator[Finding]:
    restarts = _count(record, "restart")
    if restarts:
        last = [event for event in record.events if event.kind == "restart"][-1]
        at = f", the last one behind step {last.step:,}" if last.step is not None else ""
        yield Finding(
            WARN, counted(restarts, "restart"), f"The run {last.text}{at}." if restarts == 1 else f"See the events{at}."
        )
    rewinds = _count(record, "rewind")
    if rewinds:
        yield Finding(WARN, counted(rewinds, "rewind"), "The run went back to a checkpoint after spikes of the loss.")


def _skips(record: RunRecord) -> Iterator[Finding]:
    spikes, skips = _count(record, "spike"), _count(record, "skip")
    if spikes:
        yield Finding(WARN, counted(spikes, "spike"), "Batches whose loss was a spike were not learned from.")
    if skips:
        yield Finding(
            WARN,
            counted(skips, "skipped batch", "skipped batches"),
            "Their loss was not finite, or no token of them counted.",
        )


def _loss(record: RunRecord) -> Iterator[Finding]:
    values = record.metrics.series("train/loss")[1]
    lost = int(len(values) - np.isfinite(values).sum())
    if lost:
        yield Finding(BAD, f"Loss not finite in {counted(lost, 'row')}", "NaN or infinite values are not drawn.")
    values = values[np.isfinite(values)]
    if len(values) >= 20:
        tenth = max(1, len(values) // 10)
        first, last = float(values[:tenth].mean()), float(values[-tenth:].mean())
        tone = GOOD if last < first else WARN
        words = "fell" if last < first else "did not fall"
        yield Finding(
            tone, f"Loss {words}", f"Mean of the first tenth of the rows {first:.4g}, of the last tenth {last:.4g}."
        )


def _held_out(record: RunRecord) -> Iterator[Finding]:
    steps, values = record.metrics.series("eval/loss")
    steps, values = steps[np.isfinite(values)], values[np.isfinite(values)]
    if len(values) < 3:
        return
    best = int(values.argmin())
    # One evaluation scatters: the median of three neighbours is held against the lowest such median.
    calm = np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)
    rise = float(calm[-1] / calm.min() - 1)
    if rise > _OVER_FITTED:
        text = (
            f"Lowest {values[best]:.4g} at step {steps[best]:,}, median of the last three {np.median(values[-3:]):.4g}."
        )
        yield Finding(WARN, f"Held-out loss rose by {100 * rise:.0f} %", text)
    else:
        text = f"{values[-1]:.4g} at the end, lowest {values[best]:.4g} at step {steps[best]:,}."
        yield Finding(GOOD, "Held-out loss near its lowest", text)


def _error(record: RunRecord, name: str) -> float:
    held = prediction(record).get("confidence")
    return (number_of(held.get(name)) or 0.0) if isinstance(held, dict) else 0.0


def _speed(record: RunRecord) -> Iterator[Finding]:
    step_ms, expected = typical(record, "time/step_ms"), planned(record, "step_ms")
    if step_ms is None or expected is None:
        return
    ratio, error = step_ms / expected, _error(record, "step_time")
    predicted = f"predicted {duration(expected / 1000)} give or take {100 * error:.0f} %"
    text = f"Median {duration(step_ms / 1000)} a step, {predicted}."
    if ratio > 1 + max(error, LEAST_SLOWER):
        yield Finding(WARN, f"Steps take {ratio:.2f}x the predicted time", text)
    elif ratio > 1:
        yield Finding(GOOD, f"Speed within the prediction's error ({ratio:.2f}x the time)", text)
    else:
        yield Finding(GOOD, f"Faster than predicted ({ratio:.2f}x the time)", text)


def _memory(record: RunRecord) -> Iterator[Finding]:
    ratio = record.metrics.series("plan/peak_memory_ratio")[1]
    ratio = ratio[np.isfinite(ratio)]
    expected, peak = planned(record, "peak_memory_gib"), measured_peak(record)
    if not len(ratio) or expected is None or peak is None:
        return
    worst, error = float(ratio.max()), max(_error(record, "memory"), LEAST_FULLER)
    text = f"The fullest rank held {short(worst * expected)} GiB, predicted {short(expected)} GiB."
    if worst > 1 + error:
        yield Finding(WARN, f"Memory at {worst:.2f}x the prediction", text)
    else:
        yield Finding(GOOD, f"Memory within the prediction ({worst:.2f}x)", text)


def _data_wait(record: RunRecord) -> Iterator[Finding]:
    wait, step = typical(record, "time/data_wait_ms"), typical(record, "time/step_ms")
    if wait is None or not step:
        return
    share = wait / step
    text = f"A step waits {exact(float(f'{wait:.3g}'))} ms for its batch, {100 * share:.2g} % of its time."
    tone, title = (WARN, "Steps wait for data") if share > LEAST_WAIT_SHARE else (GOOD, "Data in time")
    yield Finding(tone, title, text)


def _stragglers(record: RunRecord) -> Iterator[Finding]:
    steps, ratio = record.metrics.series("time/slowest_rank_ratio")
    ratio = ratio[np.isfinite(ratio)]
    if not len(ratio):
        return
    usual = float(np.median(ratio))
    tone, title = (WARN, "A rank is slow") if usual > 1 + LEAST_SLOWER else (GOOD, "Ranks are even")
    yield Finding(
        tone,
        title,
        f"The slowest rank takes {usual:.2f}x the time of ranks with the same work (median of {len(steps):,} rows).",
    )


def _clipping(record: RunRecord) -> Iterator[Finding]:
    limit = number_of(record.config.get("optimizer.grad_clip"))
    values = record.metrics.series("train/grad_norm")[1]
    values = values[np.isfinite(values)]
    if not limit or not len(values):
        return
    share = float((values > limit).mean())
    tone = PLAIN if share > _OFTEN_CLIPPED else GOOD
    yield Finding(
        tone,
        f"Gradients clipped in {100 * share:.0f} % of the rows",
        f"Limit {limit:g}, median norm {float(np.median(values)):.3g}.",
    )


def _saves(record: RunRecord) -> Iterator[Finding]:
    failed = _count(record, "save_failed")
    if failed:
        yield Finding(BAD, counted(failed, "failed save"), "A checkpoint could not be written; see the events.")
    if record.checkpoints:
        behind = record.status.step - record.checkpoints[-1]
        if record.status.state in (State.crashed, State.failed) and behind > 0:
            yield Finding(
                WARN, f"{counted(behind, 'step')} lost", f"The newest checkpoint is of step {record.checkpoints[-1]:,}."
            )
        else:
            held = counted(len(record.checkpoints), "checkpoint")
            yield Finding(GOOD, held, f"The newest is of step {record.checkpoints[-1]:,}.")
    elif record.status.step:
        yield Finding(WARN, "No checkpoint", "The run's folder holds none, so it cannot go on or be exported.")
