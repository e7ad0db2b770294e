from __future__ import annotations

import json
import math
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arena import FP32, Contender, Record, Turn, judge
from benchmarks.case import CASES
from benchmarks.machine import machine
from benchmarks.record import contender_record, impersonal, save, speed_table

TINY = CASES["tiny"]


def record(name: str, *seconds: float, losses: tuple[float, ...] = (2.0, 1.0), **changes: Any) -> Record:
    found = Record(Contender(name, "plain", TINY, **changes), losses=list(losses))
    found.turns = [Turn(value, (1.0,), {}) for value in seconds]
    return found


def test_a_record_has_rates_and_ratios() -> None:
    base, mine = record("base", 2.0, 4.0), record("mine", 1.0, 1.0)
    values = contender_record(mine, 2, base)
    # Two steps of 8 x 16 tokens in a second.
    assert values["tokens_per_second"]["median"] == 256
    assert values["ratio"] == {"to": "base", "median": 3.0, "least": 2.0, "most": 4.0, "count": 2}
    assert "ratio" not in contender_record(base, 2, base)


def test_who_was_skipped_has_a_reason_and_no_figures() -> None:
    absent = record("absent")
    absent.reason = "absent is not installed"
    values = contender_record(absent, 1, record("base", 1.0))
    assert values["skipped"] == "absent is not installed"
    assert "tokens_per_second" not in values
    assert "skipped: absent is not installed" in speed_table([values])


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ((2.0, 1.0), None),
        ((2.00001, 1.001), None),
        ((2.0001, 1.0), "step 1 by 5.0e-05"),
        ((2.0, 1.01), "worst 1.0e-02"),
        ((math.nan, 1.0), "step 1 by nan"),
        ((2.0, math.nan), "worst nan"),
    ],
)
def test_whose_losses_differ_is_not_timed(losses: tuple[float, float], reason: str | None) -> None:
    found = judge(record("other", losses=losses), [2.0, 1.0], FP32)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run_dir=/tmp/a_b/c-1.x", "run_dir=<path>"),
        ("--site /a/b:/c/d", "--site <path>:<path>"),
        ("5 tokens/s, (p - 1) / (m + p - 1), 1/2", "5 tokens/s, (p - 1) / (m + p - 1), 1/2"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("data/cache", "data/cache"),
        ("no such file: '/a'", "no such file: '<path>'"),
    ],
)
def test_records_have_no_paths(text: str, expected: str) -> None:
    assert impersonal({"x": [text, (1, text)]}) == {"x": [expected, [1, expected]]}


def test_records_have_no_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17")
    assert impersonal("rank 0 on node-17 died") == "rank 0 on <host> died"


def test_what_is_saved_is_dated_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "single", "--results", str(tmp_path)])
    path = save("single", "tiny", {"rounds": 1, "log": str(tmp_path / "x")}, "| a |", tmp_path)
    assert path.parent == tmp_path
    values = json.loads(path.read_text())
    assert values["command"] == "python -m benchmarks single --results <path>"
    assert values["log"] == "<path>"
    assert {"cpu", "cores", "memory_gib", "versions", "commit"} <= set(values["machine"])
    assert {"torch", "deepspeed"} <= set(values["machine"]["versions"])
    text = path.with_suffix(".md").read_text()
    assert "| a |" in text
    assert str(tmp_path) not in path.read_text() + text


def test_versions_of_further_packages_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "lightning-9.8.7.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning\nVersion: 9.8.7\n")
    assert machine(str(tmp_path))["versions"]["lightning"] == "9.8.7"
