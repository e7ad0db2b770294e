"""A run that goes back to a checkpoint: what is written and shown of it goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.config.plan import RunPlan
from trainer.config.schema import LoggingConfig, WandbMode
from trainer.data.journal import read_journal
from trainer.loop.events import RunEnd, SkippedBatch, StepReport
from trainer.loop.state import TrainState
from trainer.metrics.metrics_hook import MetricsHook
from trainer.metrics.sink import Sample
from trainer.metrics.sinks import build_metrics
from trainer.run_events import read_events
from trainer.run_paths import RunPaths
from trainer.topology.groups import single_process_groups


def train(hook: MetricsHook, report: StepReport, steps: Iterable[int], loss: float) -> None:
    for step in steps:
        hook.on_report(replace(report, step=step, loss=loss + step))
        hook.show([Sample(step, "a", f"text of {loss}")])
        hook.on_step(step)


def test_rows_console_and_summary_go_on(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    logging = LoggingConfig(wandb=WandbMode.disabled, csv=True)
    plan = replace(plan, config=replace(plan.config, logging=logging))
    paths, state = RunPaths(tmp_path / "run"), TrainState(sample_length=8)
    hook = build_metrics(plan, paths.path, state, single_process_groups(), ["here"])
    hook.on_start(1)
    train(hook, report, range(1, 7), loss=10.0)
    hook.on_skip(SkippedBatch(7, 0, (1,), 99.0, 20.0))
    hook.on_rewind(4)
    assert not paths.summary.exists(), "a run that goes on has no end yet"
    assert [stretch.step for stretch in read_journal(paths.journal)] == [1, 5]
    assert [json.loads(line)["step"] for line in paths.metrics.read_text().splitlines()] == [1, 2, 3, 4]
    train(hook, report, range(5, 9), loss=20.0)
    state.tokens_seen = 77
    hook.on_end(RunEnd("finished", 8, 5.0))

    expected = [(step, 10.0 + step) for step in range(1, 5)] + [(step, 20.0 + step) for step in range(5, 9)]
    rows = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
    assert [(row["step"], row["train/loss"]) for row in rows] == expected
    with paths.csv.open() as file:
        cells = [(int(row["step"]), float(row["train/loss"])) for row in csv.DictReader(file)]
    assert cells == expected
    texts = [json.loads(line) for line in paths.samples.read_text().splitlines()]
    assert [text["step"] for text in texts] == list(range(1, 9))
    assert [text["text"] for text in texts[4:]] == ["text of 20.0"] * 4
    summary = json.loads(paths.summary.read_text())
    assert (summary["status"], summary["step"], summary["wall_time_s"]) == ("finished", 8, 5.0)
    assert summary["final"] == rows[-1]
    assert summary["tokens_seen"] == 77
    assert len(paths.skipped_batches.read_text().splitlines()) == 1
    events = [(event.kind, event.step, dict(event.details)) for event in read_events(paths.path)]
    # Steps that were taken back keep theirs.
    evaluated = [
        step for kind, step, details in events if kind == "evaluation" and details == {"loss": report.eval_loss}
    ]
    assert evaluated == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    assert [event for event in events if event[0] != "evaluation"] == [
        ("start", 1, {"layout": plan.mesh.name, "world_size": plan.world_size}),
        ("spike", 7, {"loss": 99.0, "limit": 20.0}),
        ("rewind", 7, {"to": 4}),
        ("end", 8, {"status": "finished", "wall_s": 5.0}),
    ]
    told = capsys.readouterr().out
    assert told.count("device") == 1, "the banner is shown once"
    assert told.count("summary in") == 1
    assert "rewound" not in told
    assert "loss 11.0000 at step 1, 28.0000 at step 8" in told


def test_the_final_row_of_a_run_that_ends_where_it_went_back_to_is_the_checkpoints(
    tmp_path: Path, plan: RunPlan, report: StepReport
) -> None:
    paths = RunPaths(tmp_path / "run")
    hook = build_metrics(plan, paths.path, TrainState(sample_length=8), single_process_groups(), ["here"])
    hook.on_start(1)
    train(hook, report, range(1, 7), loss=10.0)
    hook.on_rewind(4)
    hook.on_end(RunEnd("failed", 4, 5.0, "NumericsError: again"))
    summary = json.loads(paths.summary.read_text())
    assert (summary["status"], summary["final"]["step"]) == ("failed", 4)
