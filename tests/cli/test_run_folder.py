from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.cli.conftest import Answer, Run
from trainer.config.compose import compose, to_yaml
from trainer.launcher.roster import Roster
from trainer.run_folder import RunFolder

SYNTHETIC = (
    *("data=synthetic", "model.vocab_size=512", "data.synthetic_tokens=8192", "model.seq_length=16"),
    *("runtime.device=cpu", "run_dir=run"),
)
LAYOUTS = pytest.mark.parametrize("layout", ["single", "tp2"])


def train(refused: Run, *words: str, code: int = 2) -> Answer:
    return refused("train", *SYNTHETIC, *words, code=code)


@pytest.fixture
def used(place: Path) -> Path:
    """A folder in which two steps were trained."""
    folder = place / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(compose([*SYNTHETIC, "layout=tp2"])))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    return folder


@LAYOUTS
def test_a_file(layout: str, refused: Run, place: Path) -> None:
    (place / "run").touch()
    assert train(refused, f"layout={layout}").problems == [
        f"run_dir must be a folder, but {place / 'run'} is a file; change run_dir"
    ]
    assert f"but {place / 'run'} is a file" in train(refused, "run_dir=run/deep/below").problems[0]


def test_a_link_to_nothing(refused: Run, place: Path) -> None:
    (place / "run").symlink_to("nowhere")
    assert f"but {place / 'run'} is a link to nothing" in train(refused).problems[0]


@LAYOUTS
def test_a_folder_that_cannot_be_written(
    layout: str, refused: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def refuse(path: Path, mode: int) -> bool:
        asked.append(Path(path))
        return False

    # Tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", refuse)
    answer = train(refused, f"layout={layout}", "run_dir=run/deep")
    assert answer.problems == [f"run_dir must be in a folder that can be written, but {place} cannot; change run_dir"]
    assert asked == [place]


def test_a_disk_that_is_read_only(refused: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Disk:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "statvfs", lambda path: Disk)
    answer = train(refused, "run_dir=run/deep", code=8)
    assert answer.problems == [f"run_dir must be on a disk that can be written, but that of {place} is read-only"]


@LAYOUTS
def test_another_config(layout: str, refused: Run, used: Path) -> None:
    answer = train(refused, f"layout={layout}", "model.num_layers=2", "optimizer.lr=1e-5", "train.steps=7")
    problem = answer.problems[0]
    assert problem.startswith(f"run_dir must hold a run of this config, but {used} holds one that differs in ")
    assert "model.num_layers" in problem
    assert "optimizer.lr" in problem
    assert "train.steps" not in problem, "a run may be made longer"


def test_the_sequence_may_become_longer_only_without_learned_positions(refused: Run, used: Path) -> None:
    answer = train(refused, "model.seq_length=32", "batch.global_batch_size=8")
    assert answer.problems[0].endswith("holds one that differs in model.seq_length")


def test_a_config_that_cannot_be_read(refused: Run, used: Path) -> None:
    for content in (b"model:\n  no_such_key: 3\n", b"\xff\xfe", b"- 1", b"{"):
        (used / "config.yaml").write_bytes(content)
        problem = train(refused, "layout=tp2").problems[0]
        assert problem.startswith(f"run_dir must hold a run that this version can read, but {used / 'config.yaml'}")


@LAYOUTS
def test_never_resume_in_a_used_folder(layout: str, refused: Run, used: Path) -> None:
    answer = train(refused, f"layout={layout}", "checkpoint.resume=never")
    assert answer.problems == [f"run_dir must be a fresh folder with checkpoint.resume=never, but {used} holds a run"]


def test_a_checkpoint_alone_makes_a_folder_used(refused: Run, place: Path) -> None:
    (place / "run" / "checkpoints" / "step_3").mkdir(parents=True)
    assert "holds a run" in train(refused, "checkpoint.resume=never").problems[0]


@LAYOUTS
def test_resume_from_nothing(layout: str, refused: Run, place: Path) -> None:
    answer = train(refused, f"layout={layout}", "checkpoint.resume=old/step_7", code=4)
    assert answer.problems[0].startswith("checkpoint.resume must be auto, never, or the path of a checkpoint, but: ")
    assert "old/step_7" in answer.problems[0]
    (place / "old").mkdir()
    assert "old" in train(refused, "checkpoint.resume=old", code=4).problems[0]


@LAYOUTS
def test_a_folder_in_which_ranks_work(layout: str, refused: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roster = Roster(place / "run" / "logs")
    roster.enter(0)
    # The entry is of this process, which is no stranger to itself.
    own = os.getpid()
    monkeypatch.setattr("trainer.launcher.claim.os.getpid", lambda: own + 1)
    answer = train(refused, f"layout={layout}", "launch.grace_s=0", code=7)
    assert f"rank 0 still runs in {place / 'run'} (process {own})" in answer.problems[0]


def test_a_port_that_another_run_uses(refused: Run) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        problem = train(refused, "layout=tp2", f"launch.master_port={port}").problems[0]
    assert problem.startswith(f"launch.master_port must be a port that can be listened on, but {port} cannot")


def test_home_is_understood(refused: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    (place / "file").touch()
    assert f"but {place / 'file'} is a file" in train(refused, "run_dir='~/file/run'").problems[0]


def test_the_newest_checkpoint_is_found_whatever_lies_beside_it(place: Path) -> None:
    folder = RunFolder(place / "run")
    assert folder.newest_checkpoint() is None
    for name in ("step_9", "step_10", ".step_11.partial", "step_x"):
        (place / "run" / "checkpoints" / name).mkdir(parents=True)
    assert folder.newest_checkpoint() == (10, place / "run" / "checkpoints" / "step_10")


@LAYOUTS
def test_what_a_run_shows_may_change(layout: str, used: Path) -> None:
    words = [*SYNTHETIC, f"layout={layout}", "logging.csv=true", "logging.console=quiet", "cluster=h100"]
    RunFolder.of(compose(words)).check(compose(words))
