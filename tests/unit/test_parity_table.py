from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from tests.helpers.parity import Case, Errors
from tests.helpers.parity_cases import EMBEDDINGS, matrix_of
from tests.helpers.parity_table import page, read, table

CASE = matrix_of((1, 1, 1, False))[0]
GOOD = Errors(loss=1e-8, grad_norm=2e-8, gradient=3e-8, weight=4e-8, gradient_name="a", weight_name="b")


def report(folder: Path, *cases: Case) -> Path:
    path = folder / "parity.jsonl"
    path.write_text("".join(json.dumps({"case": asdict(case), "errors": asdict(GOOD)}) + "\n" for case in cases))
    return path


def test_a_report_reads_back(tmp_path: Path) -> None:
    frozen = replace(CASE, frozen=EMBEDDINGS)
    assert read(report(tmp_path, CASE, frozen)) == {CASE: GOOD, frozen: GOOD}


def test_a_case_that_was_not_reported_or_differs_has_not_passed(tmp_path: Path) -> None:
    other = replace(CASE, tied=not CASE.tied)
    worse = replace(GOOD, weight=1.0)
    assert "| 2 | 2 |" in table({CASE: GOOD, other: GOOD}, [CASE, other])[0]
    assert "| 2 | 1 |" in table({CASE: GOOD, other: worse}, [CASE, other])[0]
    assert "| 2 | 1 |" in table({CASE: GOOD}, [CASE, other])[0]
    assert "**1 of " in page(read(report(tmp_path, CASE)), "abc")
