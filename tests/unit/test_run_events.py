from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trainer.errors import StorageError
from trainer.restarts import Restart, read_restarts, remember
from trainer.run_events import Event, EventKind, append_event, read_events

EVENTS = "events.jsonl"


def test_events_come_back_in_order_with_step_time_and_details(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    append_event(tmp_path, EventKind.start, 1, {"layout": "pp2_tp1_dp1", "world_size": 2})
    append_event(tmp_path, EventKind.skip, 7, {"reason": "not finite", "loss": math.nan})
    append_event(tmp_path, EventKind.save, 10, at=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC))
    start, skip, save = read_events(tmp_path)
    assert (start.kind, start.step, start.details) == ("start", 1, {"layout": "pp2_tp1_dp1", "world_size": 2})
    assert start.time is not None
    assert timedelta(milliseconds=-1) <= start.time - before < timedelta(minutes=1)
    assert skip.details == {"reason": "not finite", "loss": None}
    assert save == Event("save", 10, datetime(2026, 1, 2, 3, 4, 5, 678000, UTC), {})
    assert read_events(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "sta',
        "",
        "[1, 2]",
        "7",
        "null",
        '{"step": 3}',
        '{"kind": 3, "step": 3}',
        "\x00\x00\x00",
        "[" * 100_000,
        '{"kind": "save", "step": ' + "9" * 5000 + "}",
    ],
)
def test_what_is_no_event_is_left_out_and_the_next_one_has_a_line_of_its_own(tmp_path: Path, line: str) -> None:
    append_event(tmp_path, EventKind.start, 1)
    with (tmp_path / EVENTS).open("a") as file:
        file.write(line)
    append_event(tmp_path, EventKind.end, 5, {"status": "finished"})
    assert [(event.kind, event.step) for event in read_events(tmp_path)] == [("start", 1), ("end", 5)]


def test_bytes_that_are_no_text_do_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b"\xff\xfe\n")
    append_event(tmp_path, EventKind.end, 5)
    assert [event.step for event in read_events(tmp_path)] == [5]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"kind": "x", "step": 4, "time": "2026-11-30T10:00:00"}, ("x", 4, datetime(2026, 11, 30, 10, tzinfo=UTC))),
        ({"kind": "save", "step": "4", "time": "yesterday"}, ("save", None, None)),
        ({"kind": "save", "step": True, "time": 17}, ("save", None, None)),
        ({"kind": "save"}, ("save", None, None)),
        ({"kind": "save", "time": "2026-11-30T10:00:00+02:00"}, ("save", None, datetime(2026, 11, 30, 8, tzinfo=UTC))),
        ({"kind": "save", "time": "9999-12-31T23:59:59-23:59"}, ("save", None, None)),
    ],
)  # fmt: skip
def test_an_event_of_another_version_is_read_as_far_as_it_goes(
    tmp_path: Path, written: dict[str, object], read: tuple[str, int | None, datetime | None]
) -> None:
    (tmp_path / EVENTS).write_text(json.dumps(written) + "\n")
    [event] = read_events(tmp_path)
    assert (event.kind, event.step, event.time) == read


def test_a_folder_that_cannot_be_written_is_a_fault_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / EVENTS).mkdir()
    with pytest.raises((StorageError, IsADirectoryError)):
        append_event(tmp_path, EventKind.start, 1)


def test_a_restart_is_an_event_too(tmp_path: Path) -> None:
    remember(tmp_path, Restart.now(7, 12, [1], by="torchrun"))
    [event] = read_events(tmp_path)
    assert (event.kind, event.step) == ("restart", 12)
    assert event.details == {"exit_code": 7, "lost_ranks": [1], "by": "torchrun"}
    assert len(read_restarts(tmp_path)) == 1
