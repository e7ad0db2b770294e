from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer.config.plan import RunPlan
from trainer.config.schema import LoggingConfig, WandbMode
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.metrics.build import build_metrics
from trainer.metrics.hook import MetricsHook
from trainer.metrics.memory import MemoryMeter
from trainer.metrics.sink import Row
from trainer.metrics.throughput import ThroughputMeter
from trainer.model.accounting import parameter_count
from trainer.topology.groups import SingleGroup, single_process_groups

FINISHED = RunEnd("finished", 5, 1.0)
METER = ThroughputMeter(tokens_per_step=2048, flops_per_token=3e9, world_size=1, peak_flops=None)


class CountingGroup(SingleGroup):
    calls = 0

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        CountingGroup.calls += 1
        return tensor


class ListSink:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.events: list[object] = []

    def start(self, first_step: int) -> None:
        self.events.append(("start", first_step))

    def advance(self, step: int) -> None:
        self.events.append(("advance", step))

    def write(self, row: Row, report: StepReport) -> None:
        self.events.append(("write", id(row), row["step"]))

    def end(self, end: RunEnd) -> None:
        self.events.append(("end", end.status))
        if self.error:
            raise self.error


def memory() -> MemoryMeter:
    return MemoryMeter(torch.device("cpu"), CountingGroup())


def test_one_row_goes_to_every_sink(report: StepReport) -> None:
    sinks = [ListSink(), ListSink()]
    hook = MetricsHook(METER, memory(), sinks)
    hook.on_start(1)
    hook.on_step(5)
    hook.on_report(report)
    hook.on_end(FINISHED)
    assert sinks[0].events == sinks[1].events
    assert [event[0] for event in sinks[0].events if isinstance(event, tuple)] == ["start", "advance", "write", "end"]


def test_a_rank_without_sinks_takes_part_in_the_same_collectives(report: StepReport) -> None:
    counts = []
    for sinks in ([ListSink()], []):
        CountingGroup.calls = 0
        hook = MetricsHook(METER, memory(), sinks)
        hook.on_start(1)
        hook.on_step(5)
        hook.on_report(report)
        before_end = CountingGroup.calls
        hook.on_end(FINISHED)
        assert CountingGroup.calls == before_end
        counts.append(CountingGroup.calls)
    assert counts == [1, 1]


def test_every_sink_ends_even_when_one_fails() -> None:
    sinks = [ListSink(OSError("first")), ListSink()]
    with pytest.raises(OSError, match="first"):
        MetricsHook(METER, memory(), sinks).on_end(FINISHED)
    assert sinks[1].events == [("end", "finished")]


def test_the_whole_hook_leaves_rows_and_a_summary(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    state = TrainState(step=5, sample_ledger="abc", sample_length=8)
    hook = build_metrics(plan, tmp_path / "run", state, single_process_groups(), SingleGroup())
    hook.on_start(1)
    hook.on_step(5)
    hook.on_report(report)
    hook.on_end(FINISHED)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert row["perf/tokens_per_second"] == pytest.approx(4096.0)
    assert "perf/mfu" not in row
    assert summary["final"] == row
    assert summary["parameters"] == parameter_count(plan.model)
    assert summary["sample_ledger"] == "abc"
    assert "Trident: tiny" in capsys.readouterr().out


def test_other_ranks_write_and_print_nothing(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = replace(single_process_groups(), rank=1)
    hook = build_metrics(plan, tmp_path / "run", TrainState(sample_length=8), groups, SingleGroup())
    hook.on_start(1)
    hook.on_step(5)
    hook.on_report(report)
    hook.on_end(FINISHED)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_a_wandb_that_explodes_does_not_stop_the_run(
    tmp_path: Path,
    plan: RunPlan,
    report: StepReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import wandb

    def explode(**_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(wandb, "init", explode)
    logging = LoggingConfig(wandb=WandbMode.offline, console=False)
    quiet = replace(plan, config=replace(plan.config, logging=logging))
    hook = build_metrics(quiet, tmp_path, TrainState(sample_length=8), single_process_groups(), SingleGroup())
    hook.on_start(1)
    hook.on_report(report)
    hook.on_end(FINISHED)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 5
    captured = capsys.readouterr()
    assert captured.err.count("wandb is off") == 1
    assert captured.out == ""
