from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.case import CASES
from benchmarks.contenders import documents
from benchmarks.contenders.documents import CHOSEN, UNMASKED, drawn, in_turns, measured
from benchmarks.settings import Settings
from benchmarks.suites.documents import cases_of, shown
from trainer.micro_batch import Documents

CPU = torch.device("cpu")
TINY = CASES["tiny"]


def test_ways_take_turns_and_see_the_same_documents() -> None:
    calls: list[tuple[str, Documents]] = []
    draws = [drawn(TINY, 4, number, CPU) for number in range(3)]
    work = {name: lambda own, name=name: calls.append((name, own)) for name in "ab"}
    found = in_turns(work, draws.__getitem__, CPU, warmup=1, repeats=2)
    assert [(name, draws.index(own)) for name, own in calls] == [
        *[("b", 0), ("a", 0)],
        *[("a", 1), ("b", 1)],
        *[("b", 2), ("a", 2)],
    ]
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2}


def test_documents_are_as_long_as_they_are_said_to_be() -> None:
    case = replace(TINY, seq_length=4096, micro_batch_size=16)
    lengths = [length for row in drawn(case, 64, 0, CPU).lengths for length in row]
    assert sum(lengths) / len(lengths) == pytest.approx(64, rel=0.1)


@pytest.mark.parametrize("what", ["attention", "model"])
def test_a_row_has_every_way_beside_whole_sequences(what: str) -> None:
    row = measured(TINY, 4, what, CPU, warmup=0, repeats=2)
    ways = {UNMASKED, CHOSEN, *(("mask", "slices") if what == "attention" else ())}
    assert set(row["ms"]) == set(row["ratios"]) == ways
    assert row["ratios"][UNMASKED] == {"median": 1.0, "least": 1.0, "most": 1.0, "count": 2}
    assert row["way"] in ("mask", "slices", "mask, slices")


def test_ways_of_attention_are_those_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("attend", "by_mask", "by_slices"):
        monkeypatch.setattr(documents, name, lambda q, k, v, *_, name=name: (_ for _ in ()).throw(RuntimeError(name)))
    ways = documents.attention_ways(TINY, CPU)
    own = drawn(TINY, 4, 0, CPU)
    for way, name in ((CHOSEN, "attend"), ("mask", "by_mask"), ("slices", "by_slices")):
        with pytest.raises(RuntimeError, match=name):
            ways[way](own)


def test_cases_have_as_many_tokens_at_once() -> None:
    cases = cases_of(Settings())
    assert [(case.seq_length, case.micro_batch_size) for case in cases] == [(256, 8), (1024, 2), (2048, 1)]
    assert cases_of(Settings(case=TINY)) == [TINY]


def test_the_table_has_a_line_a_row_and_the_reason_of_a_failure() -> None:
    ratio = {"median": 1.5, "least": 1.25, "most": 1.75, "count": 9}
    facts = {"what": "model", "seq": 256, "batch": 8}
    rows = [
        {**facts, "mean_length": 63.7, "way": "slices", "ms": {UNMASKED: 12.0, CHOSEN: 8.0}, "ratios": {CHOSEN: ratio}},
        {**facts, "failed": "no memory"},
    ]
    lines = shown(rows).splitlines()
    assert "| model | 256 | 8 | 64 | 12.00 | - | - | 8.00 | slices | 1.50 (1.25 .. 1.75) |" in " ".join(
        lines[2].split()
    )
    assert "failed: no memory" in lines[3]
