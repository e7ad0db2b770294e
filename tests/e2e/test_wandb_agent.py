"""A sweep by `wandb agent`, offline: the installed agent starts real runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.helpers.command import run
from tests.helpers.wandb_file import offline_files, read_offline
from trainer.config.compose import from_yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "model.hidden_size=32", "model.seq_length=32", "train.steps=2"),
    *("runtime.device=cpu", "checkpoint=none", "name=swept", "train.eval_every=2"),
)


def test_each_point_is_a_run_of_the_sweep_with_a_folder_of_its_own(tmp_path: Path) -> None:
    train = ["${env}", "${interpreter}", "-m", "${program}", "train", *SETTINGS, "${args}"]
    points = {
        "aaaa1111": {"optimizer.lr": 0.001, "layout.sequence_parallel": False},
        "bbbb2222": {"optimizer.lr": 1e-05},
        "cccc3333": {"optimizer.lr": -1.0},
    }
    sweep = {"path": "team/lr-search/swp12345", "command": train, "points": points}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    environ = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "WANDB_AGENT_DISABLE_FLAPPING": "true",
    }
    ended = run([sys.executable, "-m", "tests.helpers.wandb_agent", "sweep.json"], tmp_path, 250, environ)
    assert json.loads(ended.out.splitlines()[-1]) == {"finished": 3, "failed": 1}, ended.out + ended.err
    assert ended.errors == ["error: optimizer.lr must be greater than 0, but is -1.0"]
    found = {read.run_id: read for read in map(read_offline, offline_files(tmp_path / "wandb"))}
    assert set(found) == {"aaaa1111", "bbbb2222"}
    for run_id, lr in (("aaaa1111", 0.001), ("bbbb2222", 1e-05)):
        folder, read = tmp_path / "runs" / "swept" / run_id, found[run_id]
        assert (read.project, read.entity, read.sweep_id) == ("lr-search", "team", "swp12345")
        assert (read.group, read.name, read.exit_code) == ("swept", run_id, 0)
        assert (read.config["optimizer.lr"], read.config["optimizer"]["lr"]) == (lr, lr)
        assert [row["step"] for row in read.rows] == [1, 2]
        assert "eval/loss" in read.rows[-1], "the sweep's metric"
        config = from_yaml((folder / "config.yaml").read_text())
        assert (config.optimizer.lr, config.logging.wandb_project) == (lr, "lr-search")
        assert config.logging.wandb_run_id == run_id == (folder / "wandb_run_id").read_text().strip()
        assert f"WANDB_RUN_ID={run_id}" in ended.out.replace("\n", "").replace(" ", "")
    assert not (tmp_path / "runs" / "swept" / "cccc3333").exists()
