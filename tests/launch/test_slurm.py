"""launch/slurm.sbatch under stand-ins for srun and scontrol: four ranks that really train, two nodes of two tasks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.helpers.command import Ended, Running, rows, run, wait_until
from tests.launch.launch_fixtures import LAUNCH, SETTINGS, START_S, Curve, curve, noted, with_stubs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
JOB = str(10000 + os.getpid() % 10000)
"""Also makes the port at which the ranks meet."""


def command(run_dir: Path) -> list[str]:
    return ["bash", str(LAUNCH / "slurm.sbatch"), *SETTINGS, f"run_dir={run_dir}"]


def job(log: Path) -> dict[str, str]:
    facts = {"SLURM_JOB_ID": JOB, "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "1"}
    return {**with_stubs(log), **facts}


def interrupt(run_dir: Path, log: Path, number: signal.Signals) -> Ended:
    with Running(command(run_dir), run_dir.parent, job(log)) as running:
        wait_until(lambda: len(rows(run_dir)) >= 3, START_S, "the third step")
        # --signal=B: means that the batch shell gets it, and nobody else.
        running.process.send_signal(number)
        ended = running.end(90)
        assert running.left_behind() == []
    return ended


def test_preempted_it_saves_goes_back_into_the_queue_and_ends_as_if_undisturbed(
    tmp_path: Path, undisturbed: Curve
) -> None:
    run_dir, log = tmp_path / "R", tmp_path / "log"
    ended = interrupt(run_dir, log, signal.SIGUSR1)
    assert ended.code == 75, ended.out + ended.err
    started = ["srun", "--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=1"]
    assert noted(log) == [started, ["scontrol", "requeue", JOB]]
    reached = rows(run_dir)[-1]["step"]
    assert 3 <= reached < 60
    assert (run_dir / "checkpoints" / f"step_{reached}" / "manifest.json").is_file()
    again = run(command(run_dir), tmp_path, START_S, {**job(log), "SLURM_RESTART_COUNT": "1"})
    assert again.code == 0, again.out + again.err
    assert f"step_{reached}" in again.out
    assert [call[0] for call in noted(log)] == ["srun", "scontrol", "srun"]
    assert curve(run_dir) == undisturbed
    [restart] = json.loads((run_dir / "summary.json").read_text())["restarts"]
    assert (restart["by"], restart["exit_code"], restart["step"]) == ("Slurm", 75, reached)


def test_cancelled_it_saves_but_stays_out_of_the_queue(tmp_path: Path) -> None:
    run_dir, log = tmp_path / "R", tmp_path / "log"
    ended = interrupt(run_dir, log, signal.SIGTERM)
    assert ended.code == 75, ended.out + ended.err
    assert [call[0] for call in noted(log)] == ["srun"]
    assert list((run_dir / "checkpoints").glob("step_*/manifest.json"))


@pytest.mark.parametrize(
    ("options", "restarts", "code", "requeued"),
    [
        (["--max-restarts", "2"], "1", 7, True),
        (["--max-restarts", "2"], "1", 137, True),
        (["--max-restarts", "2"], "2", 7, False),
        (["--max-restarts", "2"], "0", 5, False),
        ([], "0", 7, False),
    ],
)
def test_after_a_crash_the_job_goes_back_into_the_queue_so_often(
    options: list[str], restarts: str, code: int, requeued: bool, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    trident = tmp_path / "bin" / "trident"
    trident.parent.mkdir()
    trident.write_text(f"#!/bin/sh\nexit {code}\n")
    trident.chmod(0o755)
    facts = {**job(log), "TRIDENT_VENV": str(tmp_path), "SLURM_RESTART_COUNT": restarts}
    ended = run(["bash", str(LAUNCH / "slurm.sbatch"), *options, *SETTINGS], tmp_path, 60, facts)
    assert ended.code == code
    assert (["scontrol", "requeue", JOB] in noted(log)) == requeued
    assert ("back into the queue" in ended.out) == requeued


def test_a_refused_config_is_told_once_and_not_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["bash", str(LAUNCH / "slurm.sbatch"), "layout=tp2_pp2_dp2", "data=synthetic", "model.vocab_size=256"]
    ended = run(words, tmp_path, 60, job(log))
    assert ended.code == 2
    assert len(ended.errors) == 1
    assert "must equal the number of ranks (4)" in ended.errors[0]
    assert [call[0] for call in noted(log)] == ["srun"]
