"""Profiles of made-up machines, whose constants are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.calibration.device_profile import (
    CACHED_BYTES,
    Facts,
    NothingMeasured,
    attention_rates,
    fitted_on_steps,
    gemm_rates,
    kernel_profile,
    link_of,
)
from trainer.calibration.measurements import (
    AttentionTime,
    GemmTime,
    Measurements,
    MessageTime,
    StepSeconds,
    StreamTime,
    lower_quartile,
)
from trainer.calibration.trials import cpu_trials, cuda_trials, trials_for
from trainer.config.schema import DeviceKind, Dtype
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.profile import Collective
from trainer.planner.step_time import TimeModel

FACTS = Facts("CPU", "2026-11-29", "torch 2.9")
SHAPES = ((128, 256, 1024), (2048, 256, 1024), (512, 1024, 1024), (4096, 64, 64), (64, 64, 64))


def gemm(dtype: str, shape: tuple[int, int, int], peak: float, bandwidth: float, latency: float) -> GemmTime:
    one = GemmTime(dtype, *shape, 4 if dtype == "fp32" else 2, 1.0)
    return replace(one, seconds=one.flops / peak + one.bytes / bandwidth + latency)


def gemms() -> tuple[GemmTime, ...]:
    peaks = {"fp32": 2e11, "bf16": 5e11}
    return tuple(gemm(dtype, shape, peak, 3e10, 2e-6) for dtype, peak in peaks.items() for shape in SHAPES)


def message(kind: str, ranks: int, size: int) -> MessageTime:
    one = MessageTime(kind, ranks, size, 1.0)
    return replace(one, seconds=1e-4 + (ranks - 2) * 5e-5 + one.wire_bytes / 2e9)


def messages(*ranks: int) -> tuple[MessageTime, ...]:
    return tuple(
        message(kind.value, number, size)
        for number in ranks
        for kind in Collective
        for size in (1 << 12, 1 << 20, 1 << 24)
    )


def measured() -> list[Measurements]:
    attention = (AttentionTime("fp32", 1, 8, 256, 64, 3.5 * 4 * 8 * 256**2 * 64 / 1e11),)
    one = Measurements(1, 2, gemms(), attention, (StreamTime(1 << 20, 1e-5),))
    two = Measurements(2, 1, gemms(), attention, (StreamTime(10**7, 2e-4), StreamTime(10**8, 1e-2)), messages(2))
    return [one, two]


def number(value: float) -> Constant:
    return Constant(value, "made up")


CLUSTER = Cluster(
    device="CPU",
    nodes=1,
    devices_per_node=2,
    peak_flops={Dtype.fp32: number(4e11), Dtype.bf16: number(1e12)},
    memory_bandwidth=number(2e10),
    memory_bytes=number(16e9),
    intra_node=number(8e9),
    inter_node=number(1e9),
    host_link=number(1e10),
    watts=number(50.0),
    usd_per_device_hour=None,
    pue=1.1,
    host_memory_bytes=None,
    software=Software.trident,
    virtual_stages=1,
    cores_per_node=2,
)


def test_rates_of_gemms() -> None:
    peaks, bandwidth, latency = gemm_rates(gemms())
    assert peaks == pytest.approx({"fp32": 2e11, "bf16": 5e11}, rel=1e-3)
    assert bandwidth == pytest.approx(3e10, rel=1e-3)
    assert latency == pytest.approx(2e-6, rel=1e-2)


def test_gemms_that_calls_alone_explain_have_the_speed_of_the_fastest() -> None:
    times = [GemmTime("fp32", 8, 8, 8, 4, 1e-3), GemmTime("fp32", 16, 16, 16, 4, 1e-3)]
    peaks, bandwidth, latency = gemm_rates(times)
    assert peaks["fp32"] >= 2 * 16**3 / 1e-3
    assert bandwidth > 0
    assert latency <= 1e-3


def test_a_link_has_latency_hop_and_rate() -> None:
    link = link_of(messages(2, 4), FACTS, "messages")
    assert link is not None
    assert link.rate is not None
    assert link.latency_s.value == pytest.approx(1e-4, rel=1e-3)
    assert link.hop_s.value == pytest.approx(5e-5, rel=1e-3)
    assert link.rate.value == pytest.approx(2e9, rel=1e-3)
    assert link.rate.source == "measured on 2026-11-29 with torch 2.9: messages, 24 sizes up to 16 MiB"
    assert link_of([], FACTS, "messages") is None


def test_what_caches_do_not_hold_is_slower() -> None:
    def slow(one: MessageTime) -> MessageTime:
        return replace(one, seconds=one.seconds + max(0.0, one.wire_bytes - CACHED_BYTES) / 1e9)

    sizes = (1 << 12, 1 << 20, 1 << 24, 1 << 27)
    link = link_of([slow(message("all_gather", 2, size)) for size in sizes], FACTS, "messages")
    assert link is not None
    assert link.rate is not None
    assert link.uncached_rate is not None
    assert link.rate.value == pytest.approx(2e9, rel=1e-2)
    assert link.uncached_rate.value == pytest.approx(1e9, rel=1e-2)


def test_rates_of_attention_are_those_of_each_format() -> None:
    times = [AttentionTime("fp32", 1, 1, 10, 10, 3.5), AttentionTime("bf16", 1, 1, 10, 10, 1.0)]
    assert attention_rates(times) == pytest.approx({"fp32": 4000.0, "bf16": 14000.0})
    assert attention_rates([]) == {}


def test_rates_of_a_processor_are_those_of_all_its_cores() -> None:
    found = kernel_profile(measured(), FACTS, is_cpu=True)
    assert found.peak_flops[Dtype.fp32].value == pytest.approx(4e11, rel=1e-3)
    assert found.memory_bandwidth is not None
    assert found.memory_bandwidth.value == pytest.approx(2e10)
    assert found.bandwidth_efficiency.value == pytest.approx(5.0)
    assert found.gemm_bandwidth_efficiency.value == pytest.approx(3.0, rel=1e-3)
    assert found.attention_flops[Dtype.fp32].value == pytest.approx(2e11, rel=1e-3)
    assert set(found.collectives) == set(Collective)
    assert found.measured_on == "2026-11-29"
    assert "measured on 2026-11-29 with torch 2.9" in found.peak_flops[Dtype.bf16].source


def test_rates_of_a_gpu_are_its_own() -> None:
    found = kernel_profile(measured(), FACTS, is_cpu=False)
    assert found.peak_flops[Dtype.fp32].value == pytest.approx(2e11, rel=1e-3)
    assert found.host_bandwidth is None


def test_without_messages_links_cost_nothing() -> None:
    found = kernel_profile(measured()[:1], FACTS, is_cpu=True)
    assert found.collectives == {}
    assert found.intra_node.latency_s.value == 0.0


def test_without_kernels_there_is_no_profile() -> None:
    with pytest.raises(NothingMeasured, match="needs times of GEMMs and of memory"):
        kernel_profile([Measurements(1, 2)], FACTS, is_cpu=True)


def test_what_steps_take_is_found_by_the_time_model_itself() -> None:
    trials = cpu_trials()
    plans = [trial.plan(DeviceKind.cpu) for trial in trials]
    start = kernel_profile(measured(), FACTS, is_cpu=True)
    true = replace(
        start,
        bandwidth_efficiency=number(0.4),
        loss_efficiency=number(2.0),
        half_factor=number(1.5),
        recompute_factor=number(2.0),
        launch_s=number(2e-3),
        micro_batch_s=number(3e-3),
        step_s=number(5e-3),
        gather_s=number(4e-3),
        tensor_call_s=number(5e-4),
        shard_bytes=number(60.0),
        host_bandwidth=number(8e9),
    )
    model = TimeModel(CLUSTER, true)
    seconds = [model.step(plan).time.total for plan in plans]
    found = fitted_on_steps(start, plans, seconds, CLUSTER, FACTS)
    again = TimeModel(CLUSTER, found)
    for plan, expected in zip(plans, seconds, strict=True):
        assert again.step(plan).time.total == pytest.approx(expected, rel=0.03)
    assert found.launch_s.value == pytest.approx(2e-3, rel=0.25)
    assert found.launch_s.source == f"measured on 2026-11-29 with torch 2.9: steps of {len(plans)} small models"
    assert found.recompute_factor.value == pytest.approx(2.0, rel=0.25)
    assert found.host_bandwidth is not None
    assert found.host_bandwidth.value == pytest.approx(8e9, rel=0.5)
    assert found.collectives == start.collectives
    assert 0 < found.error.value < 0.06


def test_constants_of_what_was_not_tried_stay() -> None:
    plans = [trial.plan(DeviceKind.cpu) for trial in cpu_trials()[:2]]
    start = kernel_profile(measured(), FACTS, is_cpu=True)
    found = fitted_on_steps(start, plans, [0.1, 0.1], CLUSTER, FACTS)
    for name in (
        *("gather_s", "weight_traffic", "shard_bytes", "half_factor", "recompute_factor", "host_bandwidth"),
        "tensor_call_s",
    ):
        assert getattr(found, name) == getattr(start, name)
    assert found.launch_s != start.launch_s


def test_trials_fit_the_machine() -> None:
    assert {trial.ranks for trial in trials_for(is_cpu=True, devices=1)} == {1, 2}
    assert {trial.ranks for trial in trials_for(is_cpu=False, devices=1)} == {1}
    assert {trial.ranks for trial in trials_for(is_cpu=False, devices=8)} == {1, 2}
    # Those of a CPU are planned in the test above.
    for trial in cuda_trials():
        assert trial.plan(DeviceKind.auto).world_size == trial.ranks


def test_other_programs_only_slow_steps() -> None:
    assert StepSeconds("a", (1.0, 9.0, 1.1, 1.2, 5.0)).typical == 1.1
    assert lower_quartile([3.0]) == 3.0
