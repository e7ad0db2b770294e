from __future__ import annotations

import errno
import io
import json
import re
from pathlib import Path

import pytest

from trainer.errors import StorageError
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.jsonl import JsonlSink, read_rows
from trainer.metrics.sink import Row

END = RunEnd("finished", 3, 1.0)


def write(path: Path, first_step: int, steps: list[int], report: StepReport) -> None:
    sink = JsonlSink(path)
    sink.start(first_step)
    for step in steps:
        sink.advance(step)
        sink.write({"step": step, "train/loss": 1.0 / step}, report)
    sink.end(END)


def test_rows_are_lines_of_json(tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    write(path, 1, [1, 2], report)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "train/loss": 0.5},
    ]


def test_a_row_can_be_read_before_the_run_ends(tmp_path: Path, row: Row, report: StepReport) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.start(1)
    sink.write(row, report)
    assert read_rows(tmp_path / "metrics.jsonl") == [row]
    sink.end(END)


def test_a_resumed_run_writes_no_step_twice(tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, [1, 2, 3, 4, 5], report)
    write(path, 4, [4, 6], report)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 6]


def test_a_run_from_the_start_begins_an_empty_file(tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, [1, 2, 3], report)
    write(path, 1, [1], report)
    assert [row["step"] for row in read_rows(path)] == [1]


@pytest.mark.parametrize("torn", [b'{"step": 3, "tra', b"\xff\xfe\n", b"[3]\n", b'{"loss": 1}\n', b"\n"])
def test_a_line_that_a_crash_cut_short_is_dropped(torn: bytes, tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, [1, 2], report)
    with path.open("ab") as file:
        file.write(torn)
    write(path, 4, [4], report)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 4]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_full_disk_is_an_error_of_storage(
    tmp_path: Path, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk(io.TextIOWrapper):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.start(1)
    monkeypatch.setattr(sink, "_file", FullDisk(io.BytesIO(), encoding="utf-8"))
    with pytest.raises(StorageError, match=re.escape(str(path))) as caught:
        sink.write({"step": 1}, report)
    assert caught.value.exit_code == 8


def test_no_file_has_no_rows_and_an_end_without_a_start_is_fine(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []
    JsonlSink(tmp_path / "metrics.jsonl").end(END)
    assert not (tmp_path / "metrics.jsonl").exists()
