from __future__ import annotations

import json
import math
from dataclasses import replace

import psutil
import pytest
import torch

from trainer.config.schema import Dtype
from trainer.loop.events import StepReport
from trainer.metrics.across import Across
from trainer.metrics.memory import MemoryMeter, MemoryPeaks
from trainer.metrics.peaks import peak_flops_per_second
from trainer.metrics.row import ROW_NAMES, make_row
from trainer.metrics.straggler import RankTimes, Slowest
from trainer.metrics.throughput import ThroughputMeter

# As DESIGN names them: the contract with everything that reads metrics.jsonl.
PROMISED = [
    "step",
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "train/tokens_seen",
    "eval/loss",
    "perf/tokens_per_second",
    "perf/tokens_per_second_per_gpu",
    "perf/tflops_per_gpu",
    "perf/mfu",
    "time/step_ms",
    "time/data_wait_ms",
    "time/step_p50_ms",
    "time/step_p95_ms",
    "time/step_p99_ms",
    "memory/peak_allocated_gib",
    "memory/peak_reserved_gib",
    "pipeline/bubble_fraction",
    "train/skipped_batches",
]

METER = ThroughputMeter(tokens_per_step=2048, flops_per_token=3e9, world_size=8, peak_flops=None)
ALONE = Across(MemoryPeaks(allocated_gib=1.5, reserved_gib=2.0, used_gib=2.5), stages=(1.5,), nodes=({},))


def test_row_has_exactly_the_promised_names(report: StepReport) -> None:
    fast = replace(METER, peak_flops=1e14)
    row = make_row(report, fast.measure(report.step_ms), ALONE)
    assert list(row) == PROMISED
    assert list(ROW_NAMES) == PROMISED


def test_what_hooks_measured_follows(report: StepReport) -> None:
    measures = {"data/sample_ledger": 281474976710655, "checkpoint/stall_ms": 1.5, "x/nothing": float("nan")}
    row = make_row(replace(report, measures=measures), METER.measure(report.step_ms), ALONE)
    assert list(row)[-2:] == ["data/sample_ledger", "checkpoint/stall_ms"]
    assert row["data/sample_ledger"] == 281474976710655


def test_row_values(report: StepReport) -> None:
    row = make_row(report, METER.measure(report.step_ms), ALONE)
    assert row["step"] == 5
    assert row["train/loss"] == 3.25
    assert row["train/grad_norm"] == 0.75
    assert row["train/learning_rate"] == 3e-4
    assert row["train/tokens_seen"] == 10240
    assert row["eval/loss"] == 3.5
    assert row["time/step_ms"] == 500.0
    assert row["time/data_wait_ms"] == 2.0
    assert [row[f"time/step_p{share}_ms"] for share in (50, 95, 99)] == [490.0, 600.0, 700.0]
    assert row["memory/peak_allocated_gib"] == 1.5
    assert row["memory/peak_reserved_gib"] == 2.0
    assert row["pipeline/bubble_fraction"] == 0.2


def test_what_is_unknown_is_left_out(report: StepReport) -> None:
    bare = replace(report, eval_loss=None, bubble_fraction=None)
    row = make_row(bare, METER.measure(500.0), ALONE)
    assert set(PROMISED) - set(row) == {"eval/loss", "pipeline/bubble_fraction", "perf/mfu"}


def test_what_json_cannot_hold_is_left_out(report: StepReport) -> None:
    bad = replace(report, loss=math.nan, grad_norm=math.inf, eval_loss=math.nan, skipped_steps=3)
    row = make_row(bad, METER.measure(500.0), ALONE)
    assert "train/loss" not in row
    assert "train/grad_norm" not in row
    assert row["train/skipped_batches"] == 3
    assert "eval/loss" not in row
    json.dumps(row, allow_nan=False)


def test_stages_nodes_and_what_hooks_measured_come_after(report: StepReport) -> None:
    across = Across(ALONE.fullest, stages=(1.5, 0.5), nodes=({"cpu_percent": 7.0}, {}, {"gpu_power_w": 300.0}))
    measured = replace(report, measures={"checkpoint/stall_ms": 12.5, "checkpoint/lost": math.nan})
    row = make_row(measured, replace(METER, peak_flops=1e14).measure(500.0), across)
    assert list(row)[: len(PROMISED)] == PROMISED
    assert {name: row[name] for name in list(row)[len(PROMISED) :]} == {
        "checkpoint/stall_ms": 12.5,
        "memory/stage0/peak_allocated_gib": 1.5,
        "memory/stage1/peak_allocated_gib": 0.5,
        "system/node0/cpu_percent": 7.0,
        "system/node2/gpu_power_w": 300.0,
    }


def test_no_hook_can_say_what_the_loop_says(report: StepReport) -> None:
    row = make_row(replace(report, measures={"train/loss": 0.0, "step": 0.0}), METER.measure(500.0), ALONE)
    assert (row["train/loss"], row["step"]) == (3.25, 5)


def test_throughput_by_hand() -> None:
    speed = replace(METER, peak_flops=3e12).measure(step_ms=500.0)
    assert speed.tokens_per_second == pytest.approx(4096.0)
    assert speed.tokens_per_second_per_gpu == pytest.approx(512.0)
    assert speed.tflops_per_gpu == pytest.approx(1.536)
    assert speed.mfu == pytest.approx(0.512)


def test_no_utilisation_without_a_peak() -> None:
    assert METER.measure(500.0).mfu is None


@pytest.mark.parametrize(
    ("name", "dtype", "tflops"),
    [
        ("NVIDIA H200", Dtype.bf16, 989.4),
        ("NVIDIA H100 80GB HBM3", Dtype.bf16, 989.4),
        ("NVIDIA H100 PCIe", Dtype.bf16, 756.4),
        ("NVIDIA H100 NVL", Dtype.fp16, 835.5),
        ("NVIDIA A100-SXM4-80GB", Dtype.bf16, 311.9),
        ("NVIDIA A100-PCIE-40GB", Dtype.fp32, 19.5),
        ("NVIDIA B200", Dtype.bf16, 2250.0),
        ("NVIDIA GB200", Dtype.bf16, 2500.0),
        ("NVIDIA L40S", Dtype.bf16, 362.1),
        ("NVIDIA L4", Dtype.bf16, 121.0),
        ("NVIDIA GeForce RTX 4090", Dtype.bf16, 165.2),
        ("Tesla V100-SXM2-16GB", Dtype.fp16, 125.0),
        ("Tesla V100-PCIE-16GB", Dtype.fp16, 112.0),
        ("Tesla T4", Dtype.fp16, 65.0),
    ],
)
def test_known_devices(name: str, dtype: Dtype, tflops: float) -> None:
    assert peak_flops_per_second(name, dtype) == pytest.approx(1e12 * tflops)


@pytest.mark.parametrize(
    "name",
    [None, "CPU", "AMD Instinct MI300X", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A10G", "NVIDIA A100 MIG 1g.5gb"],
)
def test_unknown_devices_have_no_peak(name: str | None) -> None:
    assert peak_flops_per_second(name, Dtype.bf16) is None


def test_a_format_that_the_device_lacks_has_no_peak() -> None:
    assert peak_flops_per_second("Tesla V100-SXM2-16GB", Dtype.bf16) is None


class _RssOnly:
    def __init__(self, *sizes_gib: float) -> None:
        self.sizes = list(sizes_gib)

    def memory_info(self) -> object:
        return type("Info", (), {"rss": int(self.sizes.pop(0) * 2**30)})()


def test_memory_on_cpu_is_the_highest_resident_size(monkeypatch: pytest.MonkeyPatch) -> None:
    process = _RssOnly(1.0, 3.0, 2.0)
    monkeypatch.setattr(psutil, "Process", lambda: process)
    meter = MemoryMeter(torch.device("cpu"))
    meter.sample()
    meter.sample()
    peaks = meter.peaks()
    assert (peaks.allocated_gib, peaks.reserved_gib) == (3.0, 3.0)


def test_memory_of_this_process_is_plausible() -> None:
    peaks = MemoryMeter(torch.device("cpu")).peaks()
    assert 0.01 < peaks.allocated_gib < 1024


def test_memory_on_cuda_comes_from_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2**31)
    # Of 8 GiB 5 are in use, of which the allocator holds 1.5 by now.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * 2**29)
    peaks = MemoryMeter(torch.device("cuda:0")).peaks()
    assert (peaks.allocated_gib, peaks.reserved_gib) == (1.0, 2.0)
    assert peaks.used_gib == 2.0 + 3.5


def test_stages_and_the_slowest_rank_have_names_of_their_own(report: StepReport) -> None:
    times = (RankTimes(1.0, 0.0), RankTimes(2.0, 0.0))
    across = Across(ALONE.fullest, (1.5, 1.0), (), busy_ms=(300.0, 400.0), times=times)
    row = make_row(report, METER.measure(500.0), across, Slowest(1, 2.0))
    assert [row[f"time/stage{k}/busy_ms"] for k in (0, 1)] == [300.0, 400.0]
    assert (row["time/slowest_rank"], row["time/slowest_rank_ratio"]) == (1, 2.0)
    alone = replace(across, times=times[:1])
    assert "time/slowest_rank" not in make_row(report, METER.measure(500.0), alone, Slowest(0, 1.0))
