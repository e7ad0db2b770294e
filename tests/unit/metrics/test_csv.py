from __future__ import annotations

import csv
import errno
from pathlib import Path

import pytest

from trainer.errors import StorageError
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.csv_sink import CsvSink
from trainer.metrics.row import ROW_NAMES
from trainer.metrics.sink import Row

END = RunEnd("finished", 3, 1.0)


def write(path: Path, first_step: int, rows: list[Row], report: StepReport) -> None:
    sink = CsvSink(path)
    sink.start(first_step)
    for row in rows:
        sink.advance(int(row["step"]))
        sink.write(row, report)
    sink.end(END)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def steps(path: Path) -> list[str]:
    return [row["step"] for row in read(path)]


def test_rows_under_one_header_with_empty_cells(tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "run" / "metrics.csv"
    write(path, 1, [{"step": 1, "train/loss": 2.5}, {"step": 2, "eval/loss": 3.0}], report)
    assert path.read_text().splitlines()[0] == ",".join(ROW_NAMES)
    first, second = read(path)
    assert (first["step"], first["train/loss"], first["eval/loss"]) == ("1", "2.5", "")
    assert (second["train/loss"], second["eval/loss"]) == ("", "3.0")


def test_a_row_can_be_read_before_the_run_ends(tmp_path: Path, row: Row, report: StepReport) -> None:
    sink = CsvSink(tmp_path / "metrics.csv")
    sink.start(1)
    sink.write(row, report)
    assert {name: float(cell) for name, cell in read(tmp_path / "metrics.csv")[0].items() if cell} == row


def test_a_name_that_comes_later_widens_the_file(tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "metrics.csv"
    rows: list[Row] = [{"step": 1}, {"step": 2, "checkpoint/stall_ms": 7.0}, {"step": 3, "a,b": 1.0}]
    write(path, 1, rows, report)
    assert path.read_text().splitlines()[0] == ",".join(ROW_NAMES) + ',checkpoint/stall_ms,"a,b"'
    assert [row["checkpoint/stall_ms"] for row in read(path)] == ["", "7.0", ""]
    assert [row["a,b"] for row in read(path)] == ["", "", "1.0"]


def test_a_resumed_run_writes_no_step_twice_and_keeps_its_columns(tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "metrics.csv"
    write(path, 1, [{"step": step, "x": 1.0} for step in (1, 2, 3, 4)], report)
    write(path, 3, [{"step": 3}, {"step": 5, "y": 2.0}], report)
    assert steps(path) == ["1", "2", "3", "5"]
    assert [(row["x"], row["y"]) for row in read(path)] == [("1.0", ""), ("1.0", ""), ("", ""), ("", "2.0")]
    write(path, 1, [{"step": 1}], report)
    assert steps(path) == ["1"]


@pytest.mark.parametrize("torn", ["3,1.0", "3", "\x00\n", "x,1,2\n", "3,1.0,,,,,,,,,,,,,,,,,,\n", "\n"])
def test_a_line_that_a_crash_cut_short_is_dropped(torn: str, tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "metrics.csv"
    write(path, 1, [{"step": 1}, {"step": 2}], report)
    with path.open("a") as file:
        file.write(torn)
    write(path, 4, [{"step": 4}], report)
    assert steps(path) == ["1", "2", "4"]


def test_a_file_that_is_not_ours_is_begun_anew(tmp_path: Path, report: StepReport) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("name,age\nx,3\n")
    write(path, 1, [{"step": 1}], report)
    assert steps(path) == ["1"]


def test_a_full_disk_is_an_error_of_storage(
    tmp_path: Path, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = CsvSink(tmp_path / "metrics.csv")
    sink.start(1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"metrics\.csv"):
        sink.write({"step": 1}, report)
