"""A sweep whose runs really train, and one of which cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.command import rows, run, trident

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "model.hidden_size=32", "model.seq_length=32", "train.steps=4"),
    *("runtime.device=cpu", "logging=local", "checkpoint=none", "optimizer.grad_clip=0"),
    "train.max_skipped_in_row=0",
)


def test_runs_follow_one_another_and_a_broken_one_does_not_stop_them(tmp_path: Path) -> None:
    ended = run(trident("train", "--multirun", *SETTINGS, "optimizer.lr=1e30,1e-2", "run_dir=S"), tmp_path, 200)
    assert ended.code == 5, ended.out + ended.err
    broken, whole = json.loads((tmp_path / "S" / "sweep.json").read_text())
    assert (broken["point"], broken["status"]) == ("optimizer.lr=1e+30", "failed (5)")
    assert (whole["point"], whole["status"], whole["step"]) == ("optimizer.lr=0.01", "finished", 4)
    assert len(ended.errors) == 1
    assert "must be finite" in ended.errors[0]
    last = rows(tmp_path / "S" / "optimizer.lr=0.01")[-1]
    assert whole["train/loss"] == last["train/loss"]
    assert f"{last['train/loss']:.4f}" in ended.out.splitlines()[-1]
