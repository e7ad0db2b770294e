"""What a person and a program read of a profile."""

from __future__ import annotations

import pytest

from trainer.profiling.breakdown import Breakdown, Operator
from trainer.profiling.names import PARTS
from trainer.profiling.report import record, screen, summarise

TWO = {
    0: Breakdown(2, 20_000_000, {"forward": 16_000_000, "host": 4_000_000}, [Operator("aten::mm", 8_000_000, 4)]),
    2: Breakdown(
        2,
        60_000_000,
        {"forward": 12_000_000, "pipeline messages": 46_000_000, "host": 2_000_000},
        [Operator("aten::mm", 4_000_000, 2), Operator("aten::add", 14_000_000, 20)],
    ),
}


def test_numbers_are_means_over_steps_and_ranks_and_the_parts_add_up() -> None:
    summary = summarise(5, 6, "cpu", TWO)
    assert summary.step_ms == pytest.approx(20.0)
    assert summary.parts_ms == pytest.approx({"forward": 7.0, "pipeline messages": 11.5, "host": 1.5})
    assert sum(summary.parts_ms.values()) == pytest.approx(summary.step_ms)
    assert [operator.name for operator in summary.operators] == ["aten::add", "aten::mm"]
    assert [operator.milliseconds for operator in summary.operators] == pytest.approx([3.5, 3.0])
    assert [operator.calls for operator in summary.operators] == pytest.approx([5.0, 1.5])
    assert record(summary) == {
        "steps": [5, 6],
        "device": "cpu",
        "divided": "host",
        "step_ms": pytest.approx(20.0),
        "parts_ms": pytest.approx({"forward": 7.0, "pipeline messages": 11.5, "host": 1.5}),
        "ranks": {
            "0": {"step_ms": 10.0, "parts_ms": {"forward": 8.0, "host": 2.0}},
            "2": {"step_ms": 30.0, "parts_ms": {"forward": 6.0, "pipeline messages": 23.0, "host": 1.0}},
        },
        "operators": [
            {"name": "aten::add", "ms": 3.5, "calls": 5.0},
            {"name": "aten::mm", "ms": 3.0, "calls": 1.5},
        ],
    }


def test_the_screen() -> None:
    assert screen(summarise(5, 6, "cpu", TWO), "runs/x/profile", unicode=False).splitlines() == [
        "profile of step 5 to 6, mean over 2 ranks, 20.0 ms a step, in runs/x/profile",
        "part of a step                 ms     share                  least to most",
        "forward                       7.0     35.0% ######           6.0 to 8.0",
        "pipeline messages            11.5     57.5% #########        0.0 to 23.0",
        "host                          1.5      7.5% #                1.0 to 2.0",
        "largest operators                                           ms     calls",
        "aten::add                                                  3.5         5",
        "aten::mm                                                   3.0         2",
    ]
    one = screen(summarise(5, 5, "cpu", {0: TWO[0]}), "x", unicode=True).splitlines()
    assert one[0] == "profile of step 5, mean over rank 0, 10.0 ms a step, in x"
    assert one[2] == "forward                       8.0     80.0% █████████████"


def test_a_screen_is_80_by_24_however_much_there_is_to_tell() -> None:
    operators = [Operator("a" * 200 + str(i), 10**12, 10**7) for i in range(20)]
    found = Breakdown(1, len(PARTS) * 10**9, dict.fromkeys(PARTS, 10**9), operators)
    for unicode in (True, False):
        lines = screen(summarise(123456, 123475, "cuda", dict.fromkeys(range(8), found)), "x", unicode).splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert unicode or all(line.isascii() for line in lines)
        folded = next(line for line in lines if "smaller parts" in line)
        assert folded.split()[:4] == [f"{len(PARTS) - 19}", "smaller", "parts", f"{(len(PARTS) - 19) * 1e3:.1f}"]
    assert lines[1] == "the profiler saw no kernel on cuda: this is the time of the host"
    few = Breakdown(1, 6 * 10**9, dict.fromkeys(PARTS[:6], 10**9), operators, of_device=True)
    assert record(summarise(1, 1, "cuda", {0: few}))["divided"] == "device"
    lines = screen(summarise(1, 1, "cuda", {0: few}), "x", unicode=False).splitlines()
    assert sum(line.startswith("aaa") for line in lines) == 10
    assert not any("no kernel" in line for line in lines)


def test_every_part_that_a_breakdown_may_have_is_shown() -> None:
    found = Breakdown(1, len(PARTS), dict.fromkeys(PARTS, 1), [])
    assert list(summarise(1, 1, "cpu", {0: found}).parts_ms) == list(PARTS)
