"""A run that is killed goes on with another number of replicas: the same samples in the same order, the same losses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.command import rows
from tests.helpers.dist import run_distributed, train_command

pytestmark = pytest.mark.dist

STEPS, SAVED = 8, 4
SETTINGS = (
    *("data=synthetic", "data.synthetic_tokens=16384", "model.vocab_size=256", "model.hidden_size=32"),
    *("model.seq_length=32", "batch.global_batch_size=8", "layout.data_parallel_size=auto", f"train.steps={STEPS}"),
    *(f"checkpoint.every={SAVED}", "runtime.device=cpu", "runtime.threads_per_rank=1", "logging=local"),
    *(
        "logging.console=quiet",
        "checkpoint.asynchronous=false",
        "optimizer.lr=1e-2",
        f"schedule.decay_steps={STEPS}",
        "checkpoint.keep=1000",
    ),
)


def _until_it_is_killed(rank: int, world_size: int, words: Sequence[str], run_dir: Path) -> int:
    def kill() -> None:
        while not rows(run_dir) or rows(run_dir)[-1]["step"] <= SAVED:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == world_size - 1:
        threading.Thread(target=kill, daemon=True).start()
    # It would end before it can be killed.
    return train_command(rank, world_size, (*words, "train.steps=100000"))


def _losses(run_dir: Path) -> list[float]:
    return [row["train/loss"] for row in rows(run_dir)]


def _ledger(run_dir: Path) -> str:
    return str(json.loads((run_dir / "summary.json").read_text())["sample_ledger"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "R"
    assert run_distributed(train_command, 2, (*SETTINGS, f"run_dir={run_dir}")) == [0, 0]
    return run_dir


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("killed") / "R"
    with pytest.raises(AssertionError, match="ended with status -9"):
        run_distributed(_until_it_is_killed, 2, (*SETTINGS, f"run_dir={run_dir}"), run_dir)
    return run_dir


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_a_killed_run_goes_on_with_other_replicas(
    replicas: int, killed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "R"
    shutil.copytree(killed, run_dir)
    for path in (run_dir / "checkpoints").glob("step_*"):
        # Saved in the moment before it died.
        if path.name != f"step_{SAVED}":
            shutil.rmtree(path)
    assert run_distributed(train_command, replicas, (*SETTINGS, f"run_dir={run_dir}")) == [0] * replicas
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["layout"] == {"pipeline": 1, "tensor": 1, "data": replicas, "world_size": replicas}
    assert [row["step"] for row in rows(run_dir)] == list(range(1, STEPS + 1))
    assert _ledger(run_dir) == _ledger(undisturbed)
    assert _losses(run_dir) == pytest.approx(_losses(undisturbed), rel=1e-6)
    if replicas == 2:
        assert _losses(run_dir) == _losses(undisturbed)
