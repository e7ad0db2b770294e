from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.predictions import prediction
from trainer.config.plan import RunPlan
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.metrics.across import Across
from trainer.metrics.comparison import IN_A_ROW, PLAN_NAMES, WARM_UP_REPORTS, Comparison
from trainer.metrics.memory import MemoryPeaks
from trainer.metrics.sinks import build_metrics
from trainer.metrics.straggler import RankTimes, Slowest
from trainer.planner.record import PREDICTION, Expected, expected_of, prediction_record
from trainer.topology.groups import single_process_groups

EXPECTED = Expected(
    step_ms=500.0, peak_memory_gib=4.0, overhead_gib=1.0, step_error=0.1, memory_error=0.05, bubble_fraction=0.2
)
SURE_OF_NOTHING = replace(EXPECTED, step_error=0.5, memory_error=0.6)
FITS = Across(MemoryPeaks(3.0, 3.2, 4.0), stages=(3.0,), nodes=(), times=(RankTimes(1.0, 2.0),))


def said(
    comparison: Comparison, report: StepReport, times_ms: Sequence[float], across: Across = FITS, slow: float = 1.0
) -> list[str]:
    """What a run says whose steps take so long, one a report."""
    slowest = Slowest(3, slow)
    return [
        text
        for step, step_ms in enumerate(times_ms, start=1)
        for text in comparison.alarms(replace(report, step=step, step_ms=step_ms), across, slowest)
    ]


def test_a_row_has_what_was_predicted_and_what_was_measured_by_it(report: StepReport) -> None:
    found = Comparison(EXPECTED).row(replace(report, step_ms=600.0), FITS)
    assert tuple(found) == PLAN_NAMES
    assert list(found.values()) == [500.0, 1.2, 4.0, 1.0]


def test_the_memory_of_each_stage_is_told_as_the_prediction_counts_it(report: StepReport) -> None:
    comparison = Comparison(replace(EXPECTED, stage_peaks_gib=(4.0, 2.0)))
    found = comparison.row(report, replace(FITS, stages=(3.0, 1.5), used=(3.5, 2.5)))
    stages = {name: value for name, value in found.items() if name.startswith("memory/")}
    assert stages == {"memory/stage0/peak_used_gib": 3.5, "memory/stage1/peak_used_gib": 2.5}
    assert comparison.summary()["stages"] == {"predicted_gib": [4.0, 2.0], "measured_gib": [3.5, 2.5]}


SLOW = [100.0] * WARM_UP_REPORTS + [700.0] * IN_A_ROW


def test_steps_that_are_slow_in_several_reports_in_a_row_are_told_once(report: StepReport) -> None:
    [text] = said(Comparison(EXPECTED), report, SLOW + [700.0] * 9)
    assert text.startswith(
        f"steps take 1.4 times as long as predicted (step {len(SLOW)}: 700 ms, predicted 500 ms to within 10%): "
    )
    assert text.endswith("; plan.json has the predicted parts of a step, and runtime.profile=true measures them")


@pytest.mark.parametrize(
    "times_ms",
    [
        [9000.0] * WARM_UP_REPORTS + [500.0] * 9,
        [9000.0] * WARM_UP_REPORTS + [700.0] * (IN_A_ROW - 1) + [500.0] + [700.0] * (IN_A_ROW - 1),
        [649.0] * 9,
        [5.0] * 9,
    ],
    ids=["only at the beginning", "not in a row", "within 30 %", "faster"],
)
def test_nothing_is_said_of(times_ms: list[float], report: StepReport) -> None:
    assert said(Comparison(EXPECTED), report, times_ms) == []


def test_going_back_begins_the_count_anew(report: StepReport) -> None:
    comparison = Comparison(EXPECTED)
    assert said(comparison, report, SLOW[:-1]) == []
    comparison.rewind()
    assert said(comparison, report, [700.0] * (IN_A_ROW - 1)) == []
    assert len(said(comparison, report, [700.0])) == 1


def test_a_prediction_warns_only_beyond_its_own_error(report: StepReport) -> None:
    unsure = replace(EXPECTED, step_error=0.45)
    assert said(Comparison(unsure), report, SLOW) == []
    assert len(said(Comparison(unsure), report, [760.0] * 9)) == 1


def test_one_that_is_sure_of_nothing_warns_of_nothing(report: StepReport) -> None:
    full = replace(FITS, fullest=MemoryPeaks(90.0, 90.0, 90.0))
    assert said(Comparison(SURE_OF_NOTHING), report, [1e6] * 9, full) == []
    assert len(said(Comparison(SURE_OF_NOTHING, factor=2.0), report, [1e6] * 9, full)) == 2


def test_a_person_can_turn_it_off(report: StepReport) -> None:
    full = replace(FITS, fullest=MemoryPeaks(90.0, 90.0, 90.0))
    assert said(Comparison(EXPECTED, factor=0.0), report, [1e6] * 9, full) == []


@pytest.mark.parametrize(
    ("changes", "wait_ms", "slow", "cause"),
    [
        ({}, 80.0, 2.0, "80 ms of a step are a wait for data"),
        ({}, 2.0, 2.0, "rank 3 computes 2.0 times as long as its like"),
        ({"bubble_fraction": 0.5}, 2.0, 1.0, "stages wait for each other in 50% of a step, predicted 20%"),
        ({"step_percentiles_ms": (600.0, 1200.0, 1300.0)}, 2.0, 1.0, "some steps take 2.0 times as long as others"),
        ({"bubble_fraction": None}, 2.0, 1.0, "no rank stands out and data come in time"),
    ],
)
def test_what_is_measured_says_where_to_look(
    changes: dict[str, float], wait_ms: float, slow: float, cause: str, report: StepReport
) -> None:
    across = replace(FITS, times=(RankTimes(1.0, 2.0), RankTimes(1.0, wait_ms)))
    [text] = said(Comparison(EXPECTED), replace(report, **changes), SLOW, across, slow)  # type: ignore[arg-type]
    assert cause in text


@pytest.mark.parametrize(
    ("peaks", "cause"),
    [
        (MemoryPeaks(3.0, 5.0, 5.5), "torch's allocator holds 2.0 GiB that no tensor uses"),
        (MemoryPeaks(3.0, 3.1, 5.5), "2.4 GiB of the device are held outside of torch"),
        (MemoryPeaks(4.0, 4.1, 5.5), "stage 1 holds most"),
        (MemoryPeaks(5.5, 5.5, 5.5), "stage 1 holds most"),
    ],
)
def test_more_memory_than_predicted_is_told_once(peaks: MemoryPeaks, cause: str, report: StepReport) -> None:
    across = replace(FITS, fullest=peaks, stages=(2.0, peaks.allocated_gib))
    [text] = said(Comparison(EXPECTED), report, [500.0] * 9, across)
    assert text.startswith("the fullest rank has held 5.50 GiB, 1.38 times the predicted 4.00 GiB (step 3): ")
    assert cause in text


def test_a_little_more_memory_is_no_alarm(report: StepReport) -> None:
    across = replace(FITS, fullest=MemoryPeaks(4.9, 4.9, 4.9))
    assert said(Comparison(EXPECTED), report, [500.0] * 9, across) == []
    assert len(said(Comparison(EXPECTED, factor=1.05), report, [500.0] * 9, across)) == 1


def test_the_summary_leaves_the_first_reports_out(report: StepReport) -> None:
    comparison = Comparison(EXPECTED)
    assert comparison.summary().keys() == {"predicted", "predicted_error"}
    comparison.row(replace(report, step_ms=9000.0), FITS)
    assert comparison.summary()["measured"] == {"step_ms": 9000.0, "peak_memory_gib": 4.0}
    for step_ms in (8000.0, 400.0, 600.0, 650.0):
        comparison.row(replace(report, step_ms=step_ms), FITS)
    assert comparison.summary() == {
        "predicted": {"step_ms": 500.0, "peak_memory_gib": 4.0},
        "predicted_error": {"step_ms": 0.1, "peak_memory_gib": 0.05},
        "measured": {"step_ms": 600.0, "peak_memory_gib": 4.0},
        "ratio": {"step_ms": 1.2, "peak_memory_gib": 1.0},
        "stages": {"predicted_gib": [], "measured_gib": []},
    }


def run(folder: Path, plan: RunPlan, report: StepReport) -> None:
    hook = build_metrics(plan, folder, TrainState(step=5, sample_length=8), single_process_groups(), ["here"])
    hook.on_start(1)
    for step in range(1, 6):
        hook.on_report(replace(report, step=step, step_ms=1000.0))
    hook.on_end(RunEnd("finished", 5, 1.0))


def test_a_run_whose_needs_were_predicted_shows_both(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = prediction_record(prediction(memory_error=0.6))
    (tmp_path / "plan.json").write_text(json.dumps({PREDICTION: stored}))
    run(tmp_path, plan, report)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["plan/step_ms_ratio"] for row in rows] == [2.0] * 5
    last = rows[-1]
    assert (last["plan/step_ms"], last["plan/peak_memory_gib"]) == (500.0, 4.0)
    # It has grown by next to nothing.
    assert 0 <= last["plan/peak_memory_ratio"] < last["memory/peak_allocated_gib"] / 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["plan"]["ratio"]["step_ms"] == 2.0
    assert expected_of(stored).step_ms == summary["plan"]["predicted"]["step_ms"]
    shown = capsys.readouterr()
    assert "a step took 2.00 x the predicted 500 ms, memory " in shown.out
    assert shown.err.count("warning: steps take 2.0 times as long as predicted (step 5") == 1


def test_a_run_without_a_prediction_shows_none(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({PREDICTION: None}))
    run(tmp_path, plan, report)
    assert "plan/" not in (tmp_path / "metrics.jsonl").read_text()
    assert "plan" not in json.loads((tmp_path / "summary.json").read_text())
    assert "predicted" not in capsys.readouterr().out
