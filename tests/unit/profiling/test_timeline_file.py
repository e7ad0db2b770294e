from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trainer.profiling.measured_step import COLUMNS, Message, RankPlace, Span, StepTimeline, read_timeline
from trainer.profiling.spans import Note, RankNotes, spans_of

FORWARD_0 = Message("send", "forward", 0, 0)
TIMELINE = StepTimeline(
    step=5,
    time=datetime(2026, 11, 30, 10, 20, 30, 456000, UTC),
    schedule="1f1b",
    micro_batches=2,
    device="cpu",
    clock_error_ms=0.25,
    ranks=(RankPlace(0, "here", (0,)), RankPlace(4, "thère", (1,))),
    spans=(
        Span(0, "data", None, None, 0.0, 1.0),
        Span(0, "forward", 0, 0, 1.0, 3.0),
        Span(0, "send", 0, 0, 3.0, 4.0, (FORWARD_0,)),
        Span(0, "forward", 0, 1, 4.0, 8.0),
        Span(4, "wait", 1, 0, 0.5, 3.0, (FORWARD_0.other_end,)),
        Span(4, "forward", 1, 0, 4.125, 11.0),
    ),
)


def test_a_timeline_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    path.write_text(TIMELINE.to_json(), encoding="utf-8")
    assert read_timeline(path) == TIMELINE
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["columns"] == list(COLUMNS)
    assert found["spans"][2] == [0, "send", 0, 0, 3.0, 4.0, [["send", "forward", 0, 0]]]
    assert (found["stages"], found["duration_ms"]) == (2, 11.0)
    assert read_timeline(tmp_path / "other.json") is None


def test_the_bubble_is_the_time_of_both_ranks_without_a_pass() -> None:
    # From 1 to 11, twice, of which 2, 4 and 6.875 are passes.
    assert TIMELINE.bubble_fraction == pytest.approx(1 - 12.875 / 20)
    assert replace(TIMELINE, ranks=TIMELINE.ranks[:1]).bubble_fraction is None
    assert replace(TIMELINE, spans=()).bubble_fraction is None


def test_a_stage_without_such_passes_has_no_time() -> None:
    assert TIMELINE.pass_ms("forward") == (3.0, 6.875)
    assert all(math.isnan(time) for time in TIMELINE.pass_ms("backward"))


def changed(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda found: {**found, **values}


def with_row(*row: object) -> Callable[[dict[str, Any]], object]:
    return lambda found: {**found, "spans": [[0, "data", None, None, 0.0, 1.0, None], list(row)]}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda found: [found], "version 1"),
        (lambda found: None, "version 1"),
        (changed(version=2), "version 1, but that of .* is 2"),
        (lambda found: {name: value for name, value in found.items() if name != "spans"}, "spans"),
        (changed(spans=None), "whole"),
        (changed(spans=[[1, 2]]), "whole"),
        (changed(spans={"a": 1}), "whole"),
        (changed(columns=["rank"]), "columns must be"),
        (changed(ranks=[]), "each of 2 stages must have a rank"),
        (changed(ranks=[{"rank": 0, "host": "a", "stages": [0, 0]}]), "each of 2 stages"),
        (changed(stages="2"), "whole"),
        (changed(time="now"), "whole"),
        (changed(time=None), "whole"),
        (changed(clock_error_ms=[]), "whole"),
        (with_row(1, "forward", 0, 0, 1.0, 2.0, None), "a span must be of a rank"),
        (with_row(0, "sleep", 0, 0, 1.0, 2.0, None), "a span must be"),
        (with_row(0, "forward", 7, 0, 1.0, 2.0, None), "a span must be"),
        (with_row(0, "forward", -1, 0, 1.0, 2.0, None), "a span must be"),
        (with_row(0, "forward", "0", 0, 1.0, 2.0, None), "whole"),
        (with_row(0, "forward", 0, 0, 2.0, 1.0, None), "a span must be"),
        (with_row(0, "forward", 0, 0, math.nan, 1.0, None), "a span must be"),
        (with_row(0, "forward", 0, 0, 0.0, math.inf, None), "a span must be"),
        (with_row(0, "send", 0, 0, 0.0, 1.0, [["send"]]), "whole"),
        (with_row(0, "forward", 0, "first", 0.0, 1.0, None), "whole"),
        (with_row(0, "forward", 0, 2, 0.0, 1.0, None), "a span must be"),
        (changed(stages=10**15), "each of 1000000000000000 stages"),
        (with_row([0], "forward", 0, 0, 0.0, 1.0, None), "whole"),
    ],
)  # fmt: skip
def test_what_is_no_timeline_is_told_in_a_line(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], problem: str
) -> None:
    path = tmp_path / "timeline.json"
    path.write_text(json.dumps(damage(json.loads(TIMELINE.to_json()))))
    with pytest.raises(ValueError, match=problem) as caught:
        read_timeline(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, TIMELINE.to_json().encode()[:-40]])
def test_a_file_that_is_no_json_is_told_in_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "timeline.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a timeline must be JSON, but .* is not"):
        read_timeline(path)


def notes(*told: tuple[str, int | None, float]) -> tuple[Note, ...]:
    return tuple(Note(what, number, 0, begin) for what, number, begin in told)


def test_two_clocks_become_one_and_the_later_end_of_a_message_divides_the_wait_of_the_other() -> None:
    first = notes(("data", None, 10.0), ("pipeline", None, 10.1), ("ForwardPass", 1, 10.2), ("SendActivation", 1, 10.5),
                  ("hooks", None, 10.6))  # fmt: skip
    # Its clock is 1000 s ahead, and it was there first.
    second = notes(("data", None, 1009.9), ("pipeline", None, 1009.95), ("RecvActivation", 1, 1010.3),
                   ("ForwardPass", 1, 1010.6), ("OptimizerStep", 1, 1010.8), ("hooks", None, 1010.9))  # fmt: skip
    here = socket.gethostname()
    ranks = [RankNotes(0, here, (0,), first, "a"), RankNotes(1, here, (1,), second, "b")]
    found = [
        (span.rank, span.kind, span.stage, round(span.begin_ms, 6), round(span.end_ms, 6))
        for span in spans_of(ranks, [0.0, 1000.0])
    ]
    assert found == [
        (0, "data", None, 100, 200),
        (0, "start", None, 200, 300),
        (0, "forward", 0, 300, 600),
        (0, "send", 0, 600, 700),
        (1, "data", None, 0, 50),
        (1, "start", None, 50, 400),
        (1, "wait", 1, 400, 600),
        (1, "receive", 1, 600, 700),
        (1, "forward", 1, 700, 900),
        (1, "optimizer", None, 900, 1000),
    ]


def test_an_end_whose_other_end_was_not_measured_is_not_divided() -> None:
    told = notes(("data", None, 1.0), ("RecvGrad", 2, 2.0), ("hooks", None, 3.0))
    _, receive = spans_of([RankNotes(3, "here", (1,), told, "a")], [0.0])
    assert receive == Span(3, "receive", 1, 1, 1000.0, 2000.0, (Message("receive", "backward", 2, 1),))
