from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.launcher.test_roster import write_entry
from trainer.launcher.attempts import note_restart, restarted_by
from trainer.launcher.roster import Roster
from trainer.restarts import read_restarts


@pytest.mark.parametrize(
    ("environ", "by"),
    [
        ({}, None),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": "0"}, None),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, "torchrun"),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "SLURM_RESTART_COUNT": "1"}, "Slurm"),
        ({"JOBSET_RESTART_ATTEMPT": "1"}, "JobSet"),
        ({"TRIDENT_RESTART_COUNT": "1", "SLURM_RESTART_COUNT": "1"}, "launch script"),
        ({"SLURM_RESTART_COUNT": "often"}, None),
    ],
)
def test_who_started_it_again(environ: dict[str, str], by: str | None) -> None:
    assert restarted_by(environ) == by


def noted(run_dir: Path) -> tuple[object, ...]:
    logs = run_dir / "logs"
    logs.mkdir(exist_ok=True)
    note_restart("Slurm", run_dir, logs, [{"step": 3}, {"step": 9}])
    found = read_restarts(run_dir)[-1]
    assert found["by"] == "Slurm"
    return found["exit_code"], found["step"], found["lost_ranks"]


def test_what_a_rank_told(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    Roster(tmp_path / "logs").claim_failure(5)
    assert noted(tmp_path) == (5, 9, [])


def test_ranks_of_any_host_that_went_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    write_entry(tmp_path / "logs", 6, host="elsewhere")
    write_entry(tmp_path / "logs", 1, started=0.0)
    assert noted(tmp_path) == (7, 9, [1, 6])


@pytest.mark.parametrize(("status", "code"), [("stopped", 75), ("finished", 0), ("failed", None)])
def test_how_the_attempt_before_ended(status: str, code: int | None, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
    assert noted(tmp_path) == (code, 9, [])


@pytest.mark.parametrize("summary", [None, "", "[]", "{}"])
def test_nothing_tells(summary: str | None, tmp_path: Path) -> None:
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    assert noted(tmp_path) == (None, 9, [])


def test_before_the_first_step(tmp_path: Path) -> None:
    note_restart("torchrun", tmp_path, tmp_path / "logs", [])
    assert read_restarts(tmp_path)[-1]["step"] == 0
