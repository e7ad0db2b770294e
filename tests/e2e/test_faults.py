"""A rank that stands still, and a loss that spikes, in a run that a user starts."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.command import Running, rank_pid, rows, run, trident, wait_until
from trainer.run_events import read_events

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "runtime.device=cpu", "logging.wandb=disabled"),
    *("batch.micro_batch_size=2",),
)


def test_a_stopped_rank_ends_the_run_and_is_named(tmp_path: Path) -> None:
    run_dir = tmp_path / "R"
    settings = ("layout=pp2", "train.steps=100000", "runtime.hang_timeout_s=4", "runtime.timeout_s=120")
    with Running(trident("train", *SETTINGS, *settings, f"run_dir={run_dir}"), tmp_path) as running:
        wait_until(lambda: len(rows(run_dir)) >= 3, 120, "the third step")
        os.kill(rank_pid(run_dir, 1), signal.SIGSTOP)
        stopped = time.monotonic()
        ended = running.end(60)
        # 4 s without progress, 3 s for answers, and the launcher's own time to end; the collective would take 120 s.
        assert time.monotonic() - stopped < 40
        wait_until(lambda: not running.left_behind(), 5, "the end of every process")
    assert ended.code == 7, ended.out + ended.err
    assert len(ended.errors) == 1
    assert "every rank must go on within 4 s (runtime.hang_timeout_s), but the run stands still at step" in ended.err
    assert "rank 1 does not answer" in ended.err
    assert "rank 0: stage 0, step" in ended.out
    assert "most recent call first" in (run_dir / "logs" / "stacks" / "rank_0.txt").read_text()


def test_a_spike_of_the_loss_goes_back_to_the_checkpoint_and_on_behind_it(tmp_path: Path) -> None:
    # So little is learned that the loss is noise: what is somewhat above the three before it is a spike.
    policy = ("train.spike_policy=rewind", "train.spike_window=3", "train.spike_sigmas=2", "train.max_rewinds=100")
    run_dir = tmp_path / "R"
    tiny = ("optimizer.lr=1e-9", "model.hidden_size=32", "model.num_layers=1", "model.seq_length=16")
    settings = (*tiny, "train.steps=8", "checkpoint.every=2", "train.max_skipped_in_row=100", f"run_dir={run_dir}")
    ended = run(trident("train", *SETTINGS, *policy, *settings), tmp_path)
    assert ended.code == 0, ended.out + ended.err
    assert "went back from step" in ended.out
    # An event inside the run, not an end of it.
    assert ended.out.count("summary in") == 1
    assert "rewound" not in ended.out + ended.err
    skipped = [json.loads(line) for line in (run_dir / "logs" / "skipped_batches.jsonl").read_text().splitlines()]
    assert skipped
    assert all(line["reason"] == "spike" and len(line["samples"]) == 16 for line in skipped)
    # No data of before a spike are read again.
    positions = [line["position"] for line in skipped]
    assert positions == sorted(set(positions))
    assert [row["step"] for row in rows(run_dir)] == list(range(1, 9))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", 8)
    # The history has all of it, with steps that were taken back and times that go on.
    events = read_events(run_dir)
    assert (events[0].kind, events[0].step, events[-1].kind, events[-1].step) == ("start", 1, "end", 8)
    spikes = [event for event in events if event.kind == "spike"]
    assert [(event.step, event.details["loss"]) for event in spikes] == [(one["step"], one["loss"]) for one in skipped]
    rewinds = [event for event in events if event.kind == "rewind"]
    assert rewinds
    assert all(isinstance(event.step, int) and event.details["to"] in range(0, event.step, 2) for event in rewinds)
    assert {event.step for event in events if event.kind == "save"} == {2, 4, 6, 8}
    times = [event.time for event in events if event.time is not None]
    assert len(times) == len(events)
    assert times == sorted(times)
