"""What is told of a node whose processors and memory are limited, as in a container."""

from __future__ import annotations

import psutil
import pytest

from trainer.machine import MemoryLimit
from trainer.metrics.node import NodeMeter


def test_a_containers_own_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    used, now = [10.0], [100.0]
    monkeypatch.setattr("trainer.metrics.node.cpu_quota", lambda: 1.5)
    monkeypatch.setattr("trainer.metrics.node.cpu_seconds", lambda: used[0])
    monkeypatch.setattr("trainer.metrics.node.memory_limit", lambda: MemoryLimit(2 << 30, 1 << 30))
    meter = NodeMeter(with_gpus=False, clock=lambda: now[0])
    used[0], now[0] = 25.0, 120.0
    read = meter.read()
    assert read["cpu_percent"] == pytest.approx(50.0), "15 s of processor time in 20 s, of 1.5 processors"
    assert read["memory_used_gib"] == 1.0


def test_without_limits_the_machines_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.metrics.node.cpu_quota", lambda: None)
    monkeypatch.setattr("trainer.metrics.node.memory_limit", lambda: None)
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 37.0)
    read = NodeMeter(with_gpus=False).read()
    assert read["cpu_percent"] == 37.0
    assert read["memory_used_gib"] > 0
