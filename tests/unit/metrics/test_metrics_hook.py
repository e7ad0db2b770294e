from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config.plan import RunPlan
from trainer.config.schema import ConsoleKind, LoggingConfig, WandbMode
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.metrics.across import AcrossMeter
from trainer.metrics.memory import MemoryMeter
from trainer.metrics.metrics_hook import MetricsHook
from trainer.metrics.sink import Row, Sample, Sink
from trainer.metrics.sinks import build_metrics
from trainer.metrics.straggler import StragglerWatch
from trainer.metrics.throughput import ThroughputMeter
from trainer.topology.groups import SingleGroup, single_process_groups

FINISHED = RunEnd("finished", 5, 1.0)
METER = ThroughputMeter(tokens_per_step=2048, flops_per_token=3e9, world_size=1, peak_flops=None)


class CountingGroup(SingleGroup):
    calls = 0

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        CountingGroup.calls += 1
        return tensor


class ListSink(Sink):
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.events: list[object] = []

    def start(self, first_step: int) -> None:
        self.events.append(("start", first_step))

    def advance(self, step: int) -> None:
        self.events.append(("advance", step))

    def write(self, row: Row, report: StepReport) -> None:
        self.events.append(("write", id(row), row["step"]))

    def show(self, samples: Sequence[Sample]) -> None:
        self.events.append(("show", samples))

    def end(self, end: RunEnd) -> None:
        self.events.append(("end", end.status))
        if self.error:
            raise self.error


def across() -> AcrossMeter:
    return AcrossMeter(MemoryMeter(torch.device("cpu")), None, [0], CountingGroup())


def test_one_row_goes_to_every_sink(report: StepReport) -> None:
    sinks = [ListSink(), ListSink()]
    hook = MetricsHook(METER, across(), StragglerWatch([0], ["here"], 1.5), sinks)
    hook.on_start(1)
    hook.on_step(5)
    hook.on_report(report)
    hook.show([Sample(5, "def ", "f(x):")])
    hook.on_end(FINISHED)
    assert sinks[0].events == sinks[1].events
    kinds = [event[0] for event in sinks[0].events if isinstance(event, tuple)]
    assert kinds == ["start", "advance", "advance", "write", "show", "end"]


def test_a_rank_without_sinks_takes_part_in_the_same_collectives(report: StepReport) -> None:
    counts = []
    for sinks in ([ListSink()], []):
        CountingGroup.calls = 0
        hook = MetricsHook(METER, across(), StragglerWatch([0], ["here"], 1.5), sinks)
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
        MetricsHook(METER, across(), StragglerWatch([0], ["here"], 1.5), sinks).on_end(FINISHED)
    assert sinks[1].events == [("end", "finished")]


def test_the_whole_hook_leaves_rows_and_a_summary(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    state = TrainState(step=5, sample_ledger="abc", sample_length=8)
    hook = build_metrics(plan, tmp_path / "run", state, single_process_groups(), ["here"])
    hook.on_start(1)
    hook.on_step(5)
    hook.on_report(report)
    hook.on_end(FINISHED)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert row["perf/tokens_per_second"] == pytest.approx(4096.0)
    assert "perf/mfu" not in row
    assert summary["final"] == row
    assert summary["parameters"] == plan.model.parameter_count
    assert summary["sample_ledger"] == "abc"
    assert "system/node0/cpu_percent" in row
    assert "finished at step 5" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.csv").exists()


def with_logging(plan: RunPlan, logging: LoggingConfig) -> RunPlan:
    return replace(plan, config=replace(plan.config, logging=logging))


def play(plan: RunPlan, run_dir: Path, report: StepReport) -> None:
    hook = build_metrics(plan, run_dir, TrainState(sample_length=8), single_process_groups(), ["here"])
    hook.on_start(1)
    hook.on_step(5)
    hook.on_report(report)
    hook.show([Sample(5, "def ", "f(x):")])
    hook.on_end(FINISHED)


def test_every_sink_has_the_same_names(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    logging = LoggingConfig(wandb=WandbMode.disabled, csv=True, tensorboard=True)
    play(with_logging(plan, logging), tmp_path, replace(report, measures={"checkpoint/stall_ms": 3.0}))
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["checkpoint/stall_ms"] == 3.0
    header, cells = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
    assert {name: float(cell) for name, cell in zip(header, cells, strict=True) if cell} == row
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == {"step": 5, "prompt": "def ", "text": "f(x):"}
    out = capsys.readouterr().out
    assert "metrics.csv, tensorboard" in out
    assert "def f(x):" in out


def test_nodes_are_not_read_where_nobody_wants_to_know(tmp_path: Path, plan: RunPlan, report: StepReport) -> None:
    play(with_logging(plan, LoggingConfig(wandb=WandbMode.disabled, system_metrics=False)), tmp_path, report)
    assert not any(name.startswith("system/") for name in json.loads((tmp_path / "metrics.jsonl").read_text()))


def test_a_quiet_run_prints_one_line(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    play(with_logging(plan, LoggingConfig(wandb=WandbMode.disabled, console=ConsoleKind.quiet)), tmp_path, report)
    line = f"finished at step 5 after 0m01s; summary in {tmp_path / 'summary.json'}\n"
    assert capsys.readouterr() == (line, "")


@pytest.mark.parametrize(("group", "expected"), [(None, "tiny"), ("sweep", "sweep")])
def test_wandb_gets_the_whole_config(
    group: str | None,
    expected: str,
    tmp_path: Path,
    plan: RunPlan,
    report: StepReport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import wandb

    calls: list[dict[str, Any]] = []

    def init(**kwargs: Any) -> None:
        calls.append(kwargs)
        raise RuntimeError("enough")

    monkeypatch.setattr(wandb, "init", init)
    play(with_logging(plan, LoggingConfig(wandb=WandbMode.offline, wandb_group=group)), tmp_path, report)
    [call] = calls
    config = call["config"]
    assert call["group"] == expected
    assert config["model"]["seq_length"] == 128
    assert config["eval"]["prompts"] == [""]
    assert config["plan"]["layout"] == "pp2_tp2_dp2"
    assert (config["plan"]["data_parallel_size"], config["plan"]["tokens_per_step"]) == (2, 2048)
    assert config["versions"].keys() >= {"trident-trainer", "torch", "deepspeed"}
    assert config["source"] == json.loads((tmp_path / "summary.json").read_text()).get("source", {})


def test_other_ranks_write_and_print_nothing(
    tmp_path: Path, plan: RunPlan, report: StepReport, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = replace(single_process_groups(), rank=1)
    hook = build_metrics(plan, tmp_path / "run", TrainState(sample_length=8), groups, ["here"])
    hook.on_start(1)
    hook.on_step(5)
    hook.on_report(report)
    hook.on_end(FINISHED)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["explodes", "is not installed"])
def test_a_wandb_that_does_not_work_does_not_stop_the_run(
    fault: str,
    tmp_path: Path,
    plan: RunPlan,
    report: StepReport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def explode(**_: object) -> None:
        raise RuntimeError("boom")

    if fault == "explodes":
        import wandb

        monkeypatch.setattr(wandb, "init", explode)
    else:
        monkeypatch.setitem(sys.modules, "wandb", None)
    play(with_logging(plan, LoggingConfig(wandb=WandbMode.offline)), tmp_path, report)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 5
    captured = capsys.readouterr()
    assert captured.err.count("wandb is off for the rest of this run") == 1
    assert "wandb sync" not in captured.out
