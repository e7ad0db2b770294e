from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainer.config.plan import RunPlan
from trainer.errors import StorageError
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.metrics.sink import Row
from trainer.metrics.summary import SummarySink
from trainer.versions import source_commit, versions


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_summary_of_a_finished_run(tmp_path: Path, plan: RunPlan, row: Row, report: StepReport) -> None:
    state = TrainState(sample_length=8)
    sink = SummarySink(tmp_path, plan, parameters=4242, state=state)
    sink.start(1)
    sink.write({"step": 1}, report)
    sink.write(row, report)
    state.step, state.tokens_seen, state.sample_ledger = 5, 10240, "abc"
    sink.end(RunEnd("finished", 5, 12.5))
    found = summary(tmp_path)
    assert found.pop("versions").keys() >= {"trident-trainer", "python", "torch", "deepspeed"}
    assert found == {
        "status": "finished",
        "step": 5,
        "parameters": 4242,
        "tokens_seen": 10240,
        "skipped_batches": 0,
        "final": row,
        "layout": {"pipeline": 2, "tensor": 2, "data": 2, "world_size": 8},
        "wall_time_s": 12.5,
        "sample_ledger": "abc",
    }


def test_summary_of_a_failed_run_says_why(tmp_path: Path, plan: RunPlan) -> None:
    SummarySink(tmp_path, plan, 1, TrainState(sample_length=8)).end(RunEnd("failed", 0, 0.1, "OSError: gone"))
    found = summary(tmp_path)
    assert (found["status"], found["error"], found["final"]) == ("failed", "OSError: gone", {})


def test_a_resumed_run_with_nothing_left_keeps_its_final_row(tmp_path: Path, plan: RunPlan) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 9, "train/loss": 2.0}\n{"step": 11, "train/loss": 1.0}\n')
    sink = SummarySink(tmp_path, plan, 1, TrainState(step=10, sample_length=8))
    sink.start(11)
    sink.end(RunEnd("finished", 10, 0.1))
    assert summary(tmp_path)["final"] == {"step": 9, "train/loss": 2.0}


def test_a_folder_that_cannot_be_written_is_an_error_of_storage(
    tmp_path: Path, plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"summary\.json"):
        SummarySink(tmp_path, plan, 1, TrainState(sample_length=8)).end(RunEnd("finished", 1, 0.1))


def test_summary_of_a_source_tree_names_its_commit(tmp_path: Path, plan: RunPlan) -> None:
    source = {"commit": "abc", "has_changes": True}
    SummarySink(tmp_path, plan, 1, TrainState(sample_length=8), source).end(RunEnd("failed", 0, 0.1))
    assert summary(tmp_path)["source"] == {"commit": "abc", "has_changes": True}


def git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *settings, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_a_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    assert source_commit(tree) == {}
    git(tree, "init", "-q")
    assert source_commit(tree) == {}, "a repository without a commit has none"
    (tree / "a.py").write_text("a = 1\n")
    git(tree, "add", "a.py")
    git(tree, "commit", "-q", "-m", "First")
    commit = git(tree, "rev-parse", "HEAD")
    (tree / "untracked").touch()
    assert source_commit(tree) == {"commit": commit, "has_changes": False}
    (tree / "a.py").write_text("a = 2\n")
    assert source_commit(tree) == {"commit": commit, "has_changes": True}
    below = tree / "site-packages"
    below.mkdir()
    assert source_commit(below) == {}, "an installed package is not of the repository around it"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert source_commit(tree) == {}, "no git, no commit"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.versions._PACKAGES", ("torch", "surely-not-installed-package"))
    assert set(versions()) == {"trident-trainer", "python", "torch"}
