"""Ranks are threads here; two "nodes" are four ranks, of which two have local rank 0."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

import psutil
import pytest

from tests.helpers.hang import Hang
from tests.helpers.thread_group import ThreadGroup, run_ranks
from trainer.loop.events import StepReport
from trainer.metrics import node as node_module
from trainer.metrics.across import Across, AcrossMeter
from trainer.metrics.memory import MemoryPeaks
from trainer.metrics.node import NODE_NAMES, NodeMeter
from trainer.metrics.straggler import RankTimes
from trainer.topology.groups import Group, SingleGroup

REPORT = StepReport(5, 1.0, 1.0, 1e-3, 100, 1, 30.0, 3.0, None, 0, None)


class Memory:
    def __init__(self, allocated: float, reserved: float = 0.0, used: float = 0.0) -> None:
        self.found = MemoryPeaks(allocated, reserved, used)

    def sample(self) -> None:
        raise AssertionError("reading the peaks looks by itself")

    def peaks(self) -> MemoryPeaks:
        return self.found


class Node:
    def __init__(self, values: Mapping[str, float]) -> None:
        self.values = values

    def read(self) -> Mapping[str, float]:
        return self.values


def meter(memory: Memory, node: Node | None, stages: list[int], group: Group) -> AcrossMeter:
    return AcrossMeter(memory, node, stages, group)  # type: ignore[arg-type]


def test_two_nodes_of_two_ranks_in_one_collective() -> None:
    nodes = {0: Node({"cpu_percent": 10.0, "memory_used_gib": 1.0}), 2: Node({"cpu_percent": 90.0})}

    def rank(group: Group) -> tuple[Across, list[str]]:
        memory = Memory(*[(1.0, 9.0, 9.5), (4.0, 5.0, 9.9), (3.0, 6.0, 7.0), (2.0, 7.0, 7.0)][group.rank])
        times = replace(REPORT, busy_ms=[10.0, 12.0, 20.0, 18.0][group.rank], own_ms=1.0 + group.rank)
        found = meter(memory, nodes.get(group.rank), [0, 0, 1, 1], group).measure(times)
        assert isinstance(group, ThreadGroup)
        return found, group.calls

    results = run_ranks(4, rank)
    assert all(result == results[0] for result in results), "every rank must see and call the same"
    across, calls = results[0]
    assert calls == ["all_gather_0"]
    assert across.fullest == MemoryPeaks(4.0, 9.0, 9.9)
    assert across.stages == (4.0, 3.0)
    assert across.used == (9.9, 7.0)
    assert across.nodes == ({"cpu_percent": 10.0, "memory_used_gib": 1.0}, {"cpu_percent": 90.0})
    assert across.busy_ms == (12.0, 20.0)
    assert across.times == tuple(RankTimes(1.0 + rank, 3.0) for rank in range(4))


def test_without_nodes_there_are_none() -> None:
    report = replace(REPORT, busy_ms=5.0, own_ms=2.0)
    across = meter(Memory(1.0), None, [0], SingleGroup()).measure(report)
    assert across == Across(MemoryPeaks(1.0, 0.0, 0.0), (1.0,), (), (5.0,), (RankTimes(2.0, 3.0),), (0.0,))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_this_node_is_read_now_and_then() -> None:
    clock = Clock()
    reader = NodeMeter(with_gpus=False, clock=clock)
    clock.now += 1.0
    found = reader.read()
    assert set(found) == {"cpu_percent", "memory_used_gib", "network_sent_mib_per_s", "network_received_mib_per_s"}
    assert 0 <= found["cpu_percent"] <= 100
    assert 0.1 < found["memory_used_gib"] < 100_000
    assert found["network_sent_mib_per_s"] >= 0
    clock.now += 4.0
    assert reader.read() == {}
    clock.now += 1.1
    assert set(reader.read()) == set(found)


def test_traffic_is_a_rate_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([(0.0, 0.0), (4 * 2.0**20, 2.0**20)])
    monkeypatch.setattr(node_module, "_traffic", lambda: next(counts))
    clock = Clock()
    reader = NodeMeter(with_gpus=False, clock=clock)
    clock.now += 2.0
    found = reader.read()
    assert (found["network_sent_mib_per_s"], found["network_received_mib_per_s"]) == (2.0, 0.5)


def test_what_a_system_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> float:
        raise FileNotFoundError("/proc/stat")

    for name in ("cpu_percent", "virtual_memory", "net_io_counters"):
        monkeypatch.setattr(psutil, name, refuse)
    assert NodeMeter(with_gpus=False).read() == {}


def test_gpus_are_read_and_never_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    readings: list[object] = [{"gpu_utilization_percent": 80.0}, RuntimeError("driver"), {"gpu_power_w": 1.0}]

    def read() -> object:
        found = readings.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(node_module, "_read_gpus", read)
    clock = Clock()
    reader = NodeMeter(with_gpus=True, clock=clock)
    found = []
    for _ in range(3):
        clock.now += 10.0
        found.append({name: value for name, value in reader.read().items() if name.startswith("gpu")})
    assert found == [{"gpu_utilization_percent": 80.0}, {}, {}]
    assert len(readings) == 1


def test_a_driver_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, hang: Hang) -> None:
    monkeypatch.setattr(node_module, "_GPU_S", 0.05)
    monkeypatch.setattr(node_module, "_read_gpus", hang)
    assert "cpu_percent" in NodeMeter(with_gpus=True).read()
    assert not hang.has_returned


class FakeNvml:
    """The functions of NVML that are used, for two devices."""

    ended = 0

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        self.ended += 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, device: int) -> object:
        return type("Rates", (), {"gpu": [50, 100][device]})()

    def nvmlDeviceGetMemoryInfo(self, device: int) -> object:
        return type("Memory", (), {"used": [2**30, 3 * 2**30][device]})()

    def nvmlDeviceGetPowerUsage(self, device: int) -> int:
        return [100_000, 250_500][device]

    def nvmlDeviceGetTemperature(self, device: int, sensor: int) -> int:
        assert sensor == 0
        return [60, 71][device]


def test_two_gpus_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert node_module._read_gpus() == {
        "gpu_utilization_percent": 75.0,
        "gpu_memory_used_gib": 3.0,
        "gpu_power_w": 350.5,
        "gpu_temperature_c": 71.0,
    }
    assert nvml.ended == 1
    assert set(NODE_NAMES) >= set(node_module._read_gpus())
