from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from trainer.errors import StorageError
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.sink import Row, Sample
from trainer.metrics.texts import TextSink


def lines(path: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["text"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


def test_texts_are_lines_of_json_and_a_resumed_run_repeats_none(tmp_path: Path, row: Row, report: StepReport) -> None:
    path = tmp_path / "samples.jsonl"
    sink = TextSink(path)
    sink.start(1)
    sink.advance(1)
    sink.write(row, report)
    assert not path.exists(), "a run without texts has no such file"
    sink.show([Sample(10, "def ", "f():\n é \x1b"), Sample(10, "", "second")])
    sink.show([Sample(20, "def ", "twenty")])
    sink.end(RunEnd("finished", 20, 1.0))
    assert lines(path) == [(10, "f():\n é \x1b"), (10, "second"), (20, "twenty")]
    with path.open("a") as file:
        file.write('{"step": 30, "te')
    again = TextSink(path)
    again.start(15)
    again.show([Sample(20, "def ", "again")])
    assert lines(path) == [(10, "f():\n é \x1b"), (10, "second"), (20, "again")]


def test_a_full_disk_is_an_error_of_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"samples\.jsonl"):
        TextSink(tmp_path / "samples.jsonl").show([Sample(1, "", "x")])
