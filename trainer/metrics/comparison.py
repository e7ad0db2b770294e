"""The measurements of a run beside its prediction, and the alarm when the two part. No collective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

from trainer.loop.events import StepReport
from trainer.metrics.across import Across
from trainer.metrics.straggler import LEAST_WAIT_SHARE, Slowest
from trainer.planner.record import LEAST_FULLER, LEAST_SLOWER, Expected

PLAN_NAMES = ("plan/step_ms", "plan/step_ms_ratio", "plan/peak_memory_gib", "plan/peak_memory_ratio")
"""Names of a row: what was predicted, and what was measured divided by it."""
WARM_UP_REPORTS = 2
"""Reports that are not judged: kernels are compiled, caches filled, moments made."""
IN_A_ROW = 3
"""Judged reports in a row that must be slow for a warning."""
WIDEST = 0.5
"""Relative error from which on a prediction is too unsure to warn of anything."""
LEAST_BEYOND_GIB = 1.0
"""Memory beyond what was predicted that is worth a warning: libraries take some at their first use."""
_SLOW_RANK = 1.2
_MORE_BUBBLE = 0.1
_UNEVEN = 1.5


class Comparison:
    """Holds the reports of a run against its prediction. Lives on the reporting rank.

    Args:
        expected: the prediction.
        factor: multiple of what was predicted from which on a warning is given; 0: never. None: 1 + the larger of the
            prediction's own error and 30 % (memory: 10 %, and a GiB at the least), and never where that error is 50 %
            or more, as it is where the device was not measured.
    """

    def __init__(self, expected: Expected, factor: float | None = None) -> None:
        self.expected = expected
        """The prediction."""
        self._slow = _limit(expected.step_error, LEAST_SLOWER, factor)
        self._full_gib = expected.peak_memory_gib * _limit(expected.memory_error, LEAST_FULLER, factor)
        if factor is None:
            self._full_gib = max(self._full_gib, expected.peak_memory_gib + LEAST_BEYOND_GIB)
        self._reports = 0
        self._slow_in_a_row = 0
        self._step_ms: list[float] = []
        self._peak_gib = math.nan
        self._stages_gib: tuple[float, ...] = ()

    def row(self, report: StepReport, across: Across) -> dict[str, float]:
        """Return the values of `PLAN_NAMES` for a report, and the memory of each stage that a prediction knows."""
        expected, used = self.expected, across.fullest.used_gib
        self._step_ms.append(report.step_ms)
        self._peak_gib = used
        self._stages_gib = across.used
        step_ms, peak_gib = expected.step_ms, expected.peak_memory_gib
        whole = dict(zip(PLAN_NAMES, (step_ms, report.step_ms / step_ms, peak_gib, used / peak_gib), strict=True))
        return whole | {f"memory/stage{k}/peak_used_gib": stage for k, stage in enumerate(across.used)}

    def alarms(self, report: StepReport, across: Across, slowest: Slowest | None) -> list[str]:
        """Return the warnings that this report gives rise to: each of the two at most once a start of the run."""
        self._reports += 1
        if self._reports <= WARM_UP_REPORTS:
            return []
        found = []
        is_slow = report.step_ms > self._slow * self.expected.step_ms
        self._slow_in_a_row = self._slow_in_a_row + 1 if is_slow else 0
        if self._slow_in_a_row == IN_A_ROW:
            self._slow = math.inf
            found.append(self._slower(report, across, slowest))
        if across.fullest.used_gib > self._full_gib:
            self._full_gib = math.inf
            found.append(self._fuller(report, across))
        return found

    def rewind(self) -> None:
        """Begin to count slow reports anew: the run goes on from an earlier step."""
        self._slow_in_a_row = 0

    def summary(self) -> dict[str, Mapping[str, object]]:
        """Return what was predicted, what was measured since this start of the run, and their ratios.

        The time is the median over reports, without the first ones if there are others.
        """
        expected = self.expected
        predicted = {"step_ms": expected.step_ms, "peak_memory_gib": expected.peak_memory_gib}
        error = {"step_ms": expected.step_error, "peak_memory_gib": expected.memory_error}
        told: dict[str, Mapping[str, object]] = {"predicted": predicted, "predicted_error": error}
        if self._step_ms:
            step_ms = median(self._step_ms[WARM_UP_REPORTS:] or self._step_ms)
            measured = {"step_ms": step_ms, "peak_memory_gib": self._peak_gib}
            ratio = {name: value / predicted[name] for name, value in measured.items()}
            stages = {"predicted_gib": list(expected.stage_peaks_gib), "measured_gib": list(self._stages_gib)}
            told |= {"measured": measured, "ratio": ratio, "stages": stages}
        return told

    def _slower(self, report: StepReport, across: Across, slowest: Slowest | None) -> str:
        expected = self.expected
        return (
            f"steps take {report.step_ms / expected.step_ms:.1f} times as long as predicted (step {report.step}: "
            f"{report.step_ms:.0f} ms, predicted {expected.step_ms:.0f} ms to within {expected.step_error:.0%}): "
            f"{_suspect(report, across, slowest, expected)}; plan.json has the predicted parts of a step, and "
            "runtime.profile=true measures them"
        )

    def _fuller(self, report: StepReport, across: Across) -> str:
        expected, peaks = self.expected, across.fullest
        fragments, outside = peaks.reserved_gib - peaks.allocated_gib, peaks.used_gib - peaks.reserved_gib
        beyond = peaks.used_gib - expected.peak_memory_gib
        if fragments >= beyond / 2:
            why = f"torch's allocator holds {fragments:.1f} GiB that no tensor uses: its memory is fragmented"
        elif outside - expected.overhead_gib >= beyond / 2:
            why = f"{outside:.1f} GiB of the device are held outside of torch: look for other processes there"
        else:
            fullest = max(range(len(across.stages)), key=lambda stage: across.stages[stage])
            why = f"stage {fullest} holds most: lower batch.micro_batch_size, or set model.recompute, if it grows"
        return (
            f"the fullest rank has held {peaks.used_gib:.2f} GiB, {peaks.used_gib / expected.peak_memory_gib:.2f} "
            f"times the predicted {expected.peak_memory_gib:.2f} GiB (step {report.step}): {why}; plan.json has what "
            "was predicted by purpose"
        )


def _limit(error: float, least: float, factor: float | None) -> float:
    """Return the multiple of a prediction from which on a warning is given; infinity for never."""
    if factor is not None:
        return factor or math.inf
    return math.inf if error >= WIDEST else 1 + max(error, least)


def _suspect(report: StepReport, across: Across, slowest: Slowest | None, expected: Expected) -> str:
    """Return the cause that the measurements of a slow report point at."""
    waits = max((times.data_wait_ms for times in across.times), default=report.data_wait_ms)
    if waits >= LEAST_WAIT_SHARE * report.step_ms:
        return f"{waits:.0f} ms of a step are a wait for data: look at the disk that data.cache_dir is on"
    if slowest is not None and slowest.ratio >= _SLOW_RANK:
        return f"rank {slowest.rank} computes {slowest.ratio:.1f} times as long as its like: look at its machine"
    bubble = report.bubble_fraction
    if bubble is not None and bubble >= expected.bubble_fraction + _MORE_BUBBLE:
        return (
            f"stages wait for each other in {bubble:.0%} of a step, predicted {expected.bubble_fraction:.0%}: look at "
            "time/stage<k>/busy_ms and layout.stage_boundaries"
        )
    middle, late, _ = report.step_percentiles_ms
    if late >= _UNEVEN * middle:
        return f"some steps take {late / middle:.1f} times as long as others: something interrupts them now and then"
    return (
        "no rank stands out and data come in time: look at the clocks of the devices, at other processes on these "
        "machines and at the network"
    )
