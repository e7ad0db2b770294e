from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.arena import Contender, Record, Turn
from benchmarks.case import CASES
from benchmarks.suites.layouts import _bubbles, _weak

CASE = replace(CASES["tiny"], micro_batch_size=1)


def record(name: str, ranks: int, *turns: tuple[float, float | None]) -> Record:
    found = Record(Contender(name, "trident", CASE, ranks=ranks))
    extras = [{} if bubble is None else {"bubble_fraction": bubble, "bubble_in_theory": 1 / 9} for _, bubble in turns]
    found.turns = [Turn(seconds, (1.0,), extra) for (seconds, _), extra in zip(turns, extras, strict=True)]
    return found


def test_weak_scaling_is_the_time_of_one_replica_over_that_of_two() -> None:
    one = record("1 process, half the threads, half the batch", 1, (0.9, None), (1.8, None))
    values, text = _weak({"DP2": record("DP2", 2, (1.0, None), (2.0, None)), one.contender.name: one})
    assert values["weak_scaling_dp2"]["median"] == pytest.approx(0.9)
    assert "DP2 keeps 0.900 of one replica's speed" in text
    assert _weak({}) == ({}, "")


def test_bubbles_are_held_against_theory() -> None:
    values, text = _bubbles([record("PP2", 2, (1.0, 0.2), (1.0, 0.4)), record("DP2", 2, (1.0, None))])
    assert values == {"bubbles": [{"name": "PP2", "measured": [0.2, 0.4], "theory": 1 / 9}]}
    assert "0.300" in text
    assert "0.111" in text
    assert _bubbles([]) == ({"bubbles": []}, "")
