"""Every layout trains the same model: held against a plain single-process PyTorch loop.

The tolerances and why they are what they are: tests/helpers/parity.py. `--run-matrix --parity-report FILE` tries every
case and writes one JSON line each; `python -m tests.helpers.parity_table FILE` makes docs/parity.md of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case, Errors, errors_of, run_cases, tolerance_of
from tests.helpers.parity_cases import (
    FROZEN,
    HALF_PRECISION,
    OPTION_SAMPLE,
    PACKED,
    SAMPLE,
    WORLD_SIZES,
    layout_name,
    layouts,
    matrix_of,
)

MATRIX = [layout for world_size in WORLD_SIZES for layout in layouts(world_size)]


def _check(case: Case, errors: Errors) -> None:
    tolerance = tolerance_of(case)
    assert errors.loss < tolerance.loss, case.name
    assert errors.grad_norm < tolerance.grad_norm, case.name
    assert errors.gradient < tolerance.gradient, f"{case.name}: gradient of {errors.gradient_name}"
    assert errors.weight < tolerance.weight, f"{case.name}: {errors.weight_name}"


CASES_A_RANK = 8
"""Each case leaves the threads of its process groups behind; after dozens of cases ranks do little but switch them."""


def _run(cases: Sequence[Case], report: Path | None = None) -> None:
    for first in range(0, len(cases), CASES_A_RANK):
        batch = cases[first : first + CASES_A_RANK]
        outcomes = run_distributed(run_cases, batch[0].world_size, batch, timeout_s=60 + 20 * len(batch))
        for index, case in enumerate(batch):
            errors = errors_of(case, [rank[index] for rank in outcomes])
            if report is not None:
                with report.open("a") as file:
                    file.write(json.dumps({"case": asdict(case), "errors": asdict(errors)}) + "\n")
            _check(case, errors)


def _first_name(cases: Sequence[Case]) -> str:
    return cases[0].name


@pytest.mark.dist
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cases", SAMPLE, ids=_first_name)
def test_sample_equals_the_oracle(cases: tuple[Case, ...]) -> None:
    _run(cases)


@pytest.mark.dist
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cases", OPTION_SAMPLE, ids=_first_name)
def test_options_of_the_model_equal_the_oracle(cases: tuple[Case, ...]) -> None:
    _run(cases)


@pytest.mark.dist
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cases", PACKED, ids=_first_name)
def test_packed_documents_equal_the_oracle_on_each_of_them(cases: tuple[Case, ...]) -> None:
    _run(cases)


@pytest.mark.dist
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cases", FROZEN, ids=_first_name)
def test_frozen_parameters_stay_and_the_others_equal_the_oracle(cases: tuple[Case, ...]) -> None:
    _run(cases)


@pytest.mark.dist
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cases", HALF_PRECISION, ids=_first_name)
def test_half_precision_is_near_the_oracle(cases: tuple[Case, ...]) -> None:
    _run(cases)


@pytest.mark.dist
@pytest.mark.matrix
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("layout", MATRIX, ids=layout_name)
def test_matrix_equals_the_oracle(layout: tuple[int, int, int, bool], parity_report: Path | None) -> None:
    _run(matrix_of(layout), parity_report)


def test_a_wrong_norm_is_noticed() -> None:
    case = Case()
    with pytest.raises(AssertionError, match="zero1"):
        _check(case, Errors(0.0, 0.1, 0.0, "", 0.0, ""))
    with pytest.raises(AssertionError, match=r"gradient of embedding\.weight"):
        _check(case, Errors(0.0, 0.0, 1e-4, "embedding.weight", 0.0, ""))
