from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.metrics.wandb_fixtures import Voice, make_sink
from tests.unit.metrics.wandb_run_fixtures import FINISHED, FakeRun, eventually, patch_init
from trainer.config.schema import LoggingConfig, WandbMode
from trainer.loop.events import RunEnd, StepReport
from trainer.metrics.sink import Row

pytestmark = pytest.mark.usefixtures("ended_services")


class Checkpoints:
    """Folders of checkpoints, of which the newest is found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.newest: tuple[int, Path] | None = None

    def save(self, step: int) -> None:
        path = self.folder / f"step_{step}"
        path.mkdir(parents=True)
        (path / "weights").write_text(f"weights of {step}")
        self.newest = step, path

    def __call__(self) -> tuple[int, Path] | None:
        return self.newest


UPLOADING = LoggingConfig(wandb_artifacts=True)


def test_checkpoints_after_the_one_that_a_run_went_back_to_are_added_once_more(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checkpoints = FakeRun(), Checkpoints(tmp_path / "c")
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, Voice(), WandbMode.online, UPLOADING, checkpoints)
    sink.start(1)
    eventually(lambda: sink._run is not None)
    checkpoints.save(6)
    sink.write(row, report)
    eventually(lambda: len(run.artifacts) == 1)
    sink.rewind(4)
    sink.write(row, report)
    eventually(lambda: len(run.artifacts) == 2)
    sink.end(FINISHED)
    assert [aliases for _, aliases in run.artifacts] == [["step_6"], ["step_6"]]


def test_checkpoints_become_artifacts_once_each(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, voice, checkpoints = FakeRun(), Voice(), Checkpoints(tmp_path / "c")
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, voice, WandbMode.online, UPLOADING, checkpoints)
    sink.start(1)
    eventually(lambda: sink._run is not None)
    sink.write(row, report)
    checkpoints.save(5)
    sink.write(row, report)
    eventually(lambda: len(run.artifacts) == 1)
    sink.write(row, report)
    checkpoints.save(6)
    sink.end(FINISHED)
    assert [aliases for _, aliases in run.artifacts] == [["step_5"], ["step_6"]]
    assert [artifact.metadata for artifact, _ in run.artifacts] == [{"step": 5}, {"step": 6}]
    assert {artifact.name.split(":")[0] for artifact, _ in run.artifacts} == {"checkpoint-abcd1234"}
    assert list(run.artifacts[0][0].manifest.entries) == ["weights"]
    assert voice.warned == []


@pytest.mark.parametrize(("status", "added"), [("finished", [["step_5"]]), ("stopped", []), ("failed", [])])
def test_offline_only_the_last_checkpoint_of_a_finished_run_is_added(
    status: str, added: list[list[str]], tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, voice, checkpoints = FakeRun(), Voice(), Checkpoints(tmp_path / "c")
    patch_init(monkeypatch, run)
    sink = make_sink(tmp_path, voice, WandbMode.offline, UPLOADING, checkpoints)
    sink.start(1)
    checkpoints.save(3)
    sink.write(row, report)
    checkpoints.save(5)
    sink.write(row, report)
    sink.end(RunEnd(status, 5, 1.0))
    assert [aliases for _, aliases in run.artifacts] == added
    assert voice.said == ["adding the last checkpoint to wandb"] * len(added)


def test_a_checkpoint_that_goes_away_meanwhile_costs_no_rows(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, voice = FakeRun(), Voice()
    patch_init(monkeypatch, run)
    gone = (5, tmp_path / "c" / "step_5")
    sink = make_sink(tmp_path, voice, WandbMode.online, UPLOADING, lambda: gone)
    sink.start(1)
    eventually(lambda: sink._run is not None)
    sink.write(row, report)
    eventually(lambda: sink._uploads._error)
    sink.write(row, report)
    sink.end(FINISHED)
    assert run.rows == [row, row]
    assert len(voice.warned) == 1
    assert voice.warned[0].startswith("a checkpoint was not added to wandb (ValueError: ")


def test_without_artifacts_nobody_looks_for_checkpoints(
    tmp_path: Path, row: Row, report: StepReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> None:
        raise AssertionError("nobody asked for checkpoints")

    patch_init(monkeypatch, FakeRun())
    sink = make_sink(tmp_path, Voice(), WandbMode.online, checkpoints=never)
    sink.start(1)
    sink.write(row, report)
    sink.end(FINISHED)
