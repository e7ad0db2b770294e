from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.arena import Contender, ContenderFailed
from benchmarks.case import gpu_case
from benchmarks.settings import Settings
from benchmarks.suites.memory import _largest_models, fused_share

# By hand: the package's attribute of this name is the suite.
MODULE = importlib.import_module("benchmarks.suites.memory")
SETTINGS = Settings(case=gpu_case("6.7b", 1024))


def memory_for(monkeypatch: pytest.MonkeyPatch, without: int, offloaded: int, reason: str) -> None:
    """Let so many blocks train, and every larger number fail for the reason."""

    def train_alone(contender: Contender, logs: Path, *turns: int) -> list[object]:
        limit = offloaded if "zero=stage1_offload" in contender.options["overrides"] else without
        if contender.case.num_layers > limit:
            raise ContenderFailed(reason)
        return []

    monkeypatch.setattr(MODULE, "train_alone", train_alone)


def test_the_search_ends_where_memory_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory_for(monkeypatch, 5, 37, "OutOfMemoryError: CUDA out of memory")
    found, text = _largest_models(SETTINGS, tmp_path)
    assert {name: one["blocks"] for name, one in found.items()} == {"without offload": 5, "with CPU offload": 37}
    five = replace(SETTINGS.case, num_layers=5, hidden_size=4096, num_heads=32, ffn_hidden_size=16384)
    assert found["without offload"]["parameters"] == five.plan().model.parameter_count
    assert found["without offload"]["limit"] == "OutOfMemoryError: CUDA out of memory"
    assert "without offload 1.22B, with CPU offload 7.66B" in text


def test_another_failure_is_no_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory_for(monkeypatch, 0, 0, "ImportError: no module named x")
    found, _ = _largest_models(SETTINGS, tmp_path)
    assert found["without offload"] == {"skipped": "ImportError: no module named x"}


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: out of memory", True),
        ("rank 0 died: no output", True),
        ("ConfigError: batch.micro_batch_size must be a positive number", False),
    ],
)
def test_what_counts_as_out_of_memory(reason: str, expected: bool) -> None:
    assert ContenderFailed(reason).is_out_of_memory is expected


def test_a_share_of_nothing_is_none() -> None:
    assert fused_share(1, 4) == 0.25
    assert fused_share(0, 4) is None
    assert fused_share(1, 0) is None
