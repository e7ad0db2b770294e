from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from trainer.data.stream_plan import Phase, Segment, SourceShare, StreamPlan
from trainer.errors import CheckpointError

WEB, CODE = SourceShare("web", "w", 100), SourceShare("code", "c", 50, rest=20, kept=5)
FIRST = Segment(0, 7, (WEB, CODE), (Phase(0, (7, 3)), Phase(40, (1, 1))))
PLAN = StreamPlan(128, (FIRST,))


def test_a_plan_survives_json() -> None:
    plan = PLAN.with_segment(replace(FIRST, first=60, phases=(Phase(60, (1, 2)),)))
    assert StreamPlan.from_list(128, json.loads(json.dumps(plan.to_list()))) == plan


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1],
        [{}],
        ["text"],
        [{**PLAN.to_list()[0], "sources": []}],
        [{**PLAN.to_list()[0], "phases": []}],
        [{**PLAN.to_list()[0], "phases": [{"first": 0}]}],
        [{**PLAN.to_list()[0], "more": 1}],
        [{**PLAN.to_list()[0], "first": "0"}],
        [{**PLAN.to_list()[0], "seed": 0.5}],
        [{**PLAN.to_list()[0], "sources": [{"name": "web", "content": 1, "samples": 3}]}],
        [{**PLAN.to_list()[0], "sources": [{"name": "web", "content": "w", "samples": -3}]}],
        [{**PLAN.to_list()[0], "phases": [{"first": 0, "parts": [1]}]}],
        [{**PLAN.to_list()[0], "phases": [{"first": 0, "parts": [0, 0]}]}],
    ],
)
def test_what_is_no_plan_is_refused(values: list[Any]) -> None:
    with pytest.raises(CheckpointError, match="the checkpoint's segments must be a plan of its data, but are not"):
        StreamPlan.from_list(128, values)


def test_a_place_belongs_to_the_last_segment_that_begins_before_it() -> None:
    plan = PLAN.with_segment(replace(FIRST, first=60))
    assert [plan.segment_at(place) for place in (0, 59, 60, 1000)] == [0, 0, 1, 1]


def test_segments_follow_each_other() -> None:
    for first in (0, -1):
        with pytest.raises(ValueError, match="must begin behind 0"):
            PLAN.with_segment(replace(FIRST, first=first))
