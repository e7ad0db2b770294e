"""Every suite of the benchmarks from command to record, with a model of no size. What it measures is not looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.arena import FP32, Contender, compete
from benchmarks.case import CASES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]
SHORT = ["--rounds", "1", "--warmup", "2", "--threads", "2"]


def run(folder: Path, suite: str, *words: str) -> dict[str, Any]:
    assert main([suite, *SHORT, "--results", str(folder), *words]) == 0
    (path,) = folder.glob("*.json")
    assert path.with_suffix(".md").is_file()
    assert str(folder) not in path.read_text()
    found: dict[str, Any] = json.loads(path.read_text())
    assert found["suite"] == suite
    return found


def timed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Contenders that have figures, by name."""
    found = {one["name"]: one for one in record["contenders"] if "skipped" not in one}
    assert all(one["tokens_per_second"]["count"] == 1 for one in found.values())
    assert all(len(one["first_losses"]) == 2 for one in found.values())
    return found


def test_single(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(tmp_path, "single", "--case", "tiny", "--only", "trident;litgpt")
    found = timed(record)
    assert set(found) == {"plain loop", "trident"}
    assert found["trident"]["ratio"]["to"] == record["base"] == "plain loop"
    assert found["trident"]["loss_error"] < 1e-5
    (left_out,) = (one["skipped"] for one in record["contenders"] if one["name"] == "litgpt")
    assert left_out == "litgpt's GPT has no learned positions; use --case cpu_llama"
    assert f"skipped litgpt: {left_out}" in capsys.readouterr().out


def test_layouts(tmp_path: Path) -> None:
    record = run(tmp_path, "layouts", "--case", "tiny", "--only", "PP2, 8 micro-batches")
    assert set(timed(record)) == {"1 process", "PP2, 8 micro-batches"}
    (bubble,) = record["bubbles"]
    assert bubble["theory"] == pytest.approx(1 / 9)
    assert len(bubble["measured"]) == 1


def test_bubble(tmp_path: Path) -> None:
    record = run(tmp_path, "bubble", "--case", "tiny", "--only", "1F1B, PP 2, sleeping")
    (pipeline,) = record["pipelines"]
    assert [one["micro_batches"] for one in pipeline["bubbles"]] == [1, 2, 3, 4, 6, 8, 12, 16]
    for one in pipeline["bubbles"]:
        assert all(length > 49 for length in one["forward_ms"])
        assert 0 < one["idle"] < 1
        assert 0 < one["simulated_idle"] < 1


def test_variants(tmp_path: Path) -> None:
    record = run(tmp_path, "variants", "--case", "tiny", "--variant", "", "--variant", "model.hiden_size=8")
    found = {one["name"]: one for one in record["contenders"]}
    assert "tokens_per_second" in found["defaults"]
    assert "hiden_size" in found["model.hiden_size=8"]["skipped"]


def test_memory(tmp_path: Path) -> None:
    record = run(tmp_path, "memory", "--case", "tiny", "--only", "defaults")
    (feature,) = record["features"]
    assert feature["name"] == "defaults"
    assert feature["peak_bytes"] > 0
    assert feature["floor_bytes"] > 0
    assert set(record["loss"]["peak_bytes"]) == {"whole logits", "fused"}
    assert record["loss"]["gradient_error"] < 1e-6
    assert "not measured on a CPU" in record["largest_model"]["skipped"]


def test_generate(tmp_path: Path) -> None:
    record = run(tmp_path, "generate", "--case", "tiny_llama", "--only", "trident;trident, no cache")
    found = timed(record)
    assert set(found) == {one["name"] for one in record["contenders"]} >= {"trident", "transformers.generate"}
    assert found["trident"]["first_losses"] == found["trident, no cache"]["first_losses"], "the same tokens"
    assert found["trident"]["ratio"]["to"] == "transformers.generate"
    rate, (seconds,) = found["trident"]["tokens_per_second"]["median"], found["trident"]["turn_seconds"]
    assert rate == pytest.approx(8 / seconds, rel=0.1)


def test_gpu_dry(tmp_path: Path) -> None:
    record = run(tmp_path, "gpu", "--dry", "--only", "trident")
    assert (record["device"], record["dry"], record["peak_tflops"]) == ("cpu", True, None)
    assert set(record["matmul_tflops"]) == {"64", "128"}
    (row,) = record["rows"]
    assert row["case"]["dtype"] == "bf16"
    assert row["mfu"] is None
    assert record["gpu_memory_bytes"] is None
    assert row["expected_bytes"] > 0
    assert len(row["first_losses"]) == 2
    assert row["loss_error"] == 0
    assert row["tokens_per_second"]["count"] == 1


def test_plan_search(tmp_path: Path) -> None:
    record = run(tmp_path, "plan_search", "--only", "13B on 64 A100")
    (row,) = record["searches"]
    assert row["considered"] > row["fitting"] > 0
    assert len(row["turns"]) == 1
    assert row["cold_s"] > 0


def test_kernels_dry(tmp_path: Path) -> None:
    record = run(tmp_path, "kernels", "--dry")
    assert (record["device"], record["dry"], record["dtype"]) == ("cpu", True, "fp32")
    assert {one["product"] for one in record["products"]} == {"qkv", "attention output", "up", "down", "head"}
    assert {one["backend"] for one in record["attention"]} == {"flash", "math"}
    assert {one["choice"] for one in record["attention"]} == {"flash"}
    ways = {one["way"]: one.get("failed") for one in record["loss"]}
    assert [way for way, reason in ways.items() if reason is None] == [
        "whole logits",
        "fused, chunks of 2^8",
        "fused, chunks of 2^12",
    ]


@pytest.mark.slow
def test_stock(tmp_path: Path) -> None:
    record = run(tmp_path, "stock", "--case", "tiny")
    assert len(timed(record)) == 6
    assert {name: ratio["count"] for name, ratio in record["trident_over_stock"].items()} == {
        "PP2": 1,
        "DP2": 1,
        "1 process": 1,
    }


def test_who_trains_something_else_or_cannot_start_is_not_timed(tmp_path: Path) -> None:
    case = CASES["tiny"]
    other = replace(case, seed=case.seed + 1)
    contenders = [
        Contender("base", "plain", case),
        Contender("other weights", "plain", other),
        Contender("nobody", "nobody", case),
    ]
    said: list[str] = []
    base, different, absent = compete(
        contenders, tmp_path, rounds=2, steps=1, warmup=1, tolerance=FP32, say=said.append
    )
    assert base.reason is None
    assert len(base.turns) == 2
    assert different.reason is not None
    assert different.reason.startswith("its losses differ: step 1 by ")
    assert different.turns == []
    assert absent.reason == "ModuleNotFoundError: No module named 'benchmarks.contenders.nobody'"
    assert any(line.startswith("dropped other weights: its losses differ") for line in said)


@pytest.mark.slow
def test_interchange(tmp_path: Path) -> None:
    record = run(tmp_path, "interchange", "--case", "tiny")
    ways = {one["name"]: one for one in record["ways"]}
    assert {"shutil.copy", "trident import", "trident export"} < set(ways)
    assert all(one["seconds"]["count"] == 1 for one in ways.values())
    assert ways["trident import"]["peak_bytes"] > ways["trident import"]["floor_bytes"] / 2 > 50 << 20
