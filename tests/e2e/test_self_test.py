"""`runtime.self_test` and `logging.report` in a run: the test is told of, changes no number, and a page is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers.command import rows, run, trident

TINY = (
    *("data=synthetic", "model.vocab_size=300", "data.synthetic_tokens=4096", "model.seq_length=16"),
    *("model.num_layers=2", "model.dropout=0.1", "train.steps=2", "logging=local", "runtime.device=cpu"),
)
MOST_S = 10.0
"""Seconds that a self-test may take at the start of a run."""


def test_a_run_tests_itself_and_trains_the_same(tmp_path: Path) -> None:
    losses = []
    for tests_itself in ("false", "true"):
        words = [f"runtime.self_test={tests_itself}", f"logging.report={tests_itself}", f"run_dir={tests_itself}"]
        ended = run(trident("train", *TINY, *words), tmp_path)
        assert ended.code == 0, ended.err
        found = re.search(r"self-test .* equal the oracle's .*; ([0-9.]+) s\)", " ".join(ended.out.split()))
        assert (found is not None) == (tests_itself == "true")
        assert found is None or float(found[1]) < MOST_S
        assert (tmp_path / tests_itself / "report.html").exists() == (tests_itself == "true")
        losses.append([row["train/loss"] for row in rows(tmp_path / tests_itself)])
    assert losses[0] == losses[1]
