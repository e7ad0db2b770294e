"""What a run does when it is asked to stop, and when a rank is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command import Ended, Running, kill_rank, rank_pid, rows, run, trident, wait_until
from trainer.run_events import read_events

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

START_S = 120
"""A start of two ranks takes about ten seconds; a busy machine may need longer."""
STEPS = 60
"""As many as it takes to be interrupted on the way: some seconds."""
SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "layout=pp2", "batch.micro_batch_size=2", "runtime.device=cpu"),
    *("model.seq_length=32", "batch.global_batch_size=8", "logging.wandb=disabled", f"train.steps={STEPS}"),
)
TORCHRUN = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--master-port", "29873"]


def _training(run_dir: Path, steps: int) -> bool:
    return len(rows(run_dir)) >= steps


def _losses(run_dir: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in rows(run_dir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float, float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run(trident("train", *SETTINGS, "--quiet", f"run_dir={folder / 'R'}"), folder)
    assert (ended.code, ended.err) == (0, "")
    assert re.fullmatch(rf"finished at step {STEPS} after \S+; summary in \S+\n", ended.out)
    return _losses(folder / "R")


def _interrupt(command: list[str], run_dir: Path, number: signal.Signals) -> Ended:
    # Longer than the run itself needs, so that there is time to interrupt it: the seed's order does not change.
    with Running(command, run_dir.parent) as running:
        wait_until(lambda: _training(run_dir, 3), START_S, "the third step")
        running.process.send_signal(number)
        ended = running.end(60)
        assert running.left_behind() == []
    return ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_asked_to_stop_it_saves_and_goes_on_bit_for_bit(
    number: signal.Signals, tmp_path: Path, undisturbed: list[tuple[int, float, float]]
) -> None:
    run_dir = tmp_path / "R"
    command = trident("train", *SETTINGS, f"run_dir={run_dir}")
    ended = _interrupt(command, run_dir, number)
    assert ended.code == 75, ended.out + ended.err
    assert "the same command goes on from there" in ended.out
    reached = rows(run_dir)[-1]["step"]
    assert 3 <= reached < STEPS
    assert (run_dir / "checkpoints" / f"step_{reached}" / "manifest.json").is_file()
    again = run(command, tmp_path)
    assert again.code == 0, again.err
    assert f"resumed from {run_dir / 'checkpoints' / f'step_{reached}'}" in again.out
    assert _losses(run_dir) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_under_torchrun_a_stopped_run_saves(number: signal.Signals, tmp_path: Path) -> None:
    """torchrun hands on SIGTERM; SIGUSR1 kills it, and its ranks notice that they are alone."""
    run_dir = tmp_path / "R"
    command = [*TORCHRUN, "-m", "trainer", "train", *SETTINGS, "train.steps=100000", f"run_dir={run_dir}"]
    with Running(command, tmp_path) as running:
        wait_until(lambda: _training(run_dir, 3), START_S, "the third step")
        running.process.send_signal(number)
        assert running.end(60).code != 0
        wait_until(lambda: not running.left_behind(), 30, "the end of every process")
    reached = rows(run_dir)[-1]["step"]
    assert (run_dir / "checkpoints" / f"step_{reached}" / "manifest.json").is_file()


@pytest.mark.parametrize("launcher", ["trident", "torchrun"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_and_is_named(launcher: str, rank: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "R"
    settings = ("train", *SETTINGS, "train.steps=100000", f"run_dir={run_dir}")
    command = trident(*settings) if launcher == "trident" else [*TORCHRUN, "-m", "trainer", *settings]
    with Running(command, tmp_path) as running:
        wait_until(lambda: _training(run_dir, 3), START_S, "the third step")
        killed = time.monotonic()
        kill_rank(run_dir, rank)
        ended = running.end(30)
        assert time.monotonic() - killed < 30
        wait_until(lambda: not running.left_behind(), 5, "the end of every process")
    assert ended.code != 0
    if launcher == "trident":
        assert ended.code == 7
        assert ended.errors == [
            f"error: every rank must live until the run ends, but rank {rank} was lost (killed, or out of host memory)"
        ]
    else:
        assert f"rank {rank} was lost" in ended.err


def test_a_stopped_rank_does_not_hang_the_run_when_it_is_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "R"
    with Running(trident("train", *SETTINGS, "train.steps=100000", f"run_dir={run_dir}"), tmp_path) as running:
        wait_until(lambda: _training(run_dir, 3), START_S, "the third step")
        os.kill(rank_pid(run_dir, 1), signal.SIGSTOP)
        # Rank 0 now waits in a collective that only rank 1 could end.
        kill_rank(run_dir, 1)
        assert running.end(30).code == 7


def test_a_killed_rank_is_started_again_and_ends_bit_for_bit(
    tmp_path: Path, undisturbed: list[tuple[int, float, float]]
) -> None:
    run_dir = tmp_path / "R"
    settings = (*SETTINGS, "checkpoint.every=2", "launch.max_restarts=1", "launch.restart_backoff_s=0")
    with Running(trident("train", *settings, f"run_dir={run_dir}"), tmp_path) as running:
        wait_until(lambda: _training(run_dir, 5), START_S, "the fifth step")
        kill_rank(run_dir, 1)
        ended = running.end(150)
        assert running.left_behind() == []
    assert ended.code == 0, ended.out + ended.err
    assert "rank 1 was lost" in ended.err
    assert "starting again in 0 s" in ended.out
    assert _losses(run_dir) == undisturbed
    restarts = json.loads((run_dir / "summary.json").read_text())["restarts"]
    assert [(r["exit_code"], r["lost_ranks"]) for r in restarts] == [(7, [1])]
    # The rank that is left notes its own end, unless the launcher ends it before.
    told = [event for event in read_events(run_dir) if event.kind in ("start", "restart", "end")]
    kept = [event for event in told if event.details.get("status") != "failed"]
    assert [event.kind for event in kept] == ["start", "restart", "start", "end"]
    first, again, second, end = kept
    assert (first.step, again.step, end.details["status"]) == (1, restarts[0]["step"], "finished")
    assert isinstance(second.step, int)
    assert second.step % 2 == 1, "it goes on behind a checkpoint"
