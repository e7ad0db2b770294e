from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.predictions import prediction, stage
from trainer.planner.prediction import GIB
from trainer.planner.record import PREDICTION, Expected, expected_of, prediction_record, read_expected

TWO = prediction(stage(weights=GIB), stage(weights=GIB, gradients=GIB, init_peak=8 * GIB), step_s=0.25)


def record(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(prediction_record(TWO), allow_nan=False)), **changes}


def test_a_record_says_what_the_prediction_says() -> None:
    found = record()
    assert found["fits"] is True
    assert (found["peak_memory_gib"], found["device_memory_gib"]) == (8.0, 80.0)
    assert [one["peak_gib"] for one in found["stages"]] == [2.0, 8.0]
    second = found["stages"][1]
    assert second["in_flight"] == 1
    assert {name: value for name, value in second["memory_gib"].items() if value} == {
        "weights": 1.0,
        "gradients": 1.0,
        "overhead": 1.0,
    }
    assert second["init_peak_gib"] == 8.0
    assert found["step_time_s"] == 0.25
    hidden = found["data_parallel_hidden_s"]
    assert hidden == 0.1
    assert sum(found["step_time_parts_s"].values()) == pytest.approx(0.25)
    assert found["constants"] == {"peak_flops": {"value": 1e14, "source": "nobody"}}
    assert found["confidence"] == {"step_time": 0.1, "memory": 0.05, "reason": "by hand", "outside": []}


def test_a_run_is_held_against_its_fullest_rank(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"layout": {}, PREDICTION: record()}))
    assert read_expected(file) == Expected(250.0, 8.0, 1.0, 0.1, 0.05, 0.2, (2.0, 8.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({PREDICTION: None}),
        json.dumps({PREDICTION: "x"}),
        json.dumps({PREDICTION: record(stages=[])}),
        json.dumps({PREDICTION: record(stages=[{"memory_gib": {}}])}),
        json.dumps({PREDICTION: record(step_time_s=0)}),
        json.dumps({PREDICTION: record(step_time_s="1")}),
        json.dumps({PREDICTION: record(peak_memory_gib=-1)}),
        json.dumps({PREDICTION: record(bubble_fraction=True)}),
        json.dumps({PREDICTION: record(confidence=[])}),
        '{"prediction": {"stages": [NaN]}}',
    ],
)
def test_a_file_without_a_prediction_expects_nothing(text: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert read_expected(file) is None
    file.write_text(text)
    assert read_expected(file) is None


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a number of at least 0, but is inf"):
        expected_of(record(step_time_s=float("inf")))
