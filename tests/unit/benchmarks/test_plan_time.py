from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.arena import Record, Turn
from benchmarks.settings import Settings, UsageError
from tests.unit.planner.test_profile_file import PROFILE, number

suite = import_module("benchmarks.suites.plan_time")


def test_ranks_correlate() -> None:
    assert suite.spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert suite.spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert suite.spearman([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert suite.spearman([1, 1], [1, 2]) == 0.0


def test_every_layout_has_a_plan_and_a_name_of_its_own() -> None:
    layouts = suite.layouts(2)
    assert len(layouts) >= 12
    assert len({one.name for one in layouts}) == len(layouts)
    for one in layouts:
        assert suite.plan_of(one).world_size == one.ranks


def test_a_layout_is_compared() -> None:
    contender = suite.layouts(2)[0]
    turns = [Turn(seconds, (), {}) for seconds in (2.0, 4.0, 2.2, 9.0, 2.1)]
    profile = replace(PROFILE, host_bandwidth=number(1e10))
    row = suite.compared(Record(contender, turns=turns), profile, steps=2)
    assert row["measured_s"] == 1.05
    assert row["error"] == pytest.approx(row["predicted_s"] / 1.05 - 1, abs=1e-3)
    assert sum(row["predicted_parts_s"].values()) == pytest.approx(row["predicted_s"], abs=1e-3)
    skipped = suite.compared(Record(contender, reason="no memory"), profile, steps=2)
    assert skipped["skipped"] == "no memory"
    shown = suite.text([row, skipped], {})
    assert "skipped: no memory" in shown


def test_errors_are_summed_up() -> None:
    rows = [
        {"name": "a", "error": 0.1, "predicted_s": 1.1, "measured_s": 1.0},
        {"name": "b", "error": -0.2, "predicted_s": 1.6, "measured_s": 2.0},
    ]
    found = suite.summary(rows)
    assert found == {"mean_error": 0.15, "largest_error": 0.2, "within_15_percent": 1, "spearman": 1.0}
    assert suite.summary(rows[:1]) == {}
    assert "1 of 2 within 15 %, Spearman 1.000" in suite.text(rows, found)


def test_a_machine_that_is_not_calibrated_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIDENT_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="needs a device profile of this machine: trident plan --calibrate"):
        suite.plan_time(Settings())
