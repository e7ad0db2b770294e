from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.hang import Hang
from trainer.config.schema import LoggingConfig
from trainer.errors import ConfigError
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics import tensorboard_sink
from trainer.metrics.sink import Sample
from trainer.metrics.tensorboard_sink import TensorBoardSink, check_tensorboard

END = RunEnd("finished", 3, 1.0)


def play(folder: Path, first_step: int, steps: list[int], report: StepReport) -> list[str]:
    warned: list[str] = []
    sink = TensorBoardSink(folder, warned.append)
    sink.start(first_step)
    for step in steps:
        sink.advance(step)
        sink.write({"step": step, "train/loss": float(10 * first_step + step)}, report)
    sink.show([Sample(steps[-1], "def ", "f(x):\n    return *x*")])
    sink.end(END)
    return warned


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def test_scalars_and_texts_under_the_names_of_the_rows(tmp_path: Path, report: StepReport) -> None:
    assert play(tmp_path, 1, [1, 2, 3], report) == []
    found = events(tmp_path)
    assert found.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(1, 11.0), (2, 12.0), (3, 13.0)]
    [text] = found.Tensors("samples/0/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    def f(x):\n        return *x*"


def test_a_resumed_run_shows_no_step_twice(tmp_path: Path, report: StepReport) -> None:
    play(tmp_path, 1, [1, 2, 3, 4, 5], report)
    play(tmp_path, 4, [4, 6], report)
    found = events(tmp_path)
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [
        *[(1, 11.0), (2, 12.0), (3, 13.0)],
        *[(4, 44.0), (6, 46.0)],
    ]


def test_a_folder_that_cannot_be_written_is_told_once_and_stops_nothing(tmp_path: Path, report: StepReport) -> None:
    (tmp_path / "file").write_text("")
    warned = play(tmp_path / "file" / "tensorboard", 1, [1, 2, 3], report)
    assert len(warned) == 1
    assert warned[0].startswith("TensorBoard is off for the rest of this run (NotADirectoryError")


def test_a_writer_that_hangs_is_given_up(tmp_path: Path, hang: Hang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard_sink, "_FINISH_S", 0.1)
    warned: list[str] = []
    sink = TensorBoardSink(tmp_path, warned.append)
    monkeypatch.setattr(sink, "_open", hang)
    sink.start(1)
    sink.end(END)
    assert not hang.has_returned
    assert len(warned) == 1


def test_an_end_without_a_start_is_fine(tmp_path: Path) -> None:
    warned: list[str] = []
    TensorBoardSink(tmp_path / "t", warned.append).end(END)
    assert warned == []
    assert not (tmp_path / "t").exists()


def test_a_missing_package_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tensorboard(LoggingConfig(tensorboard=True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_tensorboard(LoggingConfig())
    with pytest.raises(ConfigError, match="needs the package tensorboard, but it is not installed") as caught:
        check_tensorboard(LoggingConfig(tensorboard=True))
    assert caught.value.exit_code == 2
    assert caught.value.hints[0] == "pip install tensorboard"
