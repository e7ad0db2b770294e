from __future__ import annotations

from importlib import import_module

import pytest

from benchmarks.settings import Settings, UsageError
from trainer.planner.space import variants

suite = import_module("benchmarks.suites.plan_search")


def test_a_case_has_ten_thousand_legal_layouts() -> None:
    counts = [sum(1 for _ in variants(case.plan(), case.devices)) for case in suite.CASES]
    assert max(counts) >= 10_000
    assert min(counts) > 0


def test_turns_are_summed_up() -> None:
    turns = [suite.SearchTurn(2000, 100, cold, 0.5, 0.25) for cold in (1.0, 3.0, 1.5)]
    row = suite.summed_up(suite.CASES[0], turns)
    assert (row["considered"], row["fitting"], row["cold_s"], row["ms_per_layout"]) == (2000, 100, 1.5, 0.75)
    assert len(row["turns"]) == 3
    assert "| 2,000   | 100" in suite.text([row])


def test_a_case_that_does_not_exist_is_told() -> None:
    with pytest.raises(UsageError, match="there is no case 'nothing'; choose from 13B on 64 A100"):
        suite.plan_search(Settings(only=("nothing",)))
