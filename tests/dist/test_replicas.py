"""Weights that several ranks hold alike are compared: one element of one copy is enough to end the run."""

from __future__ import annotations

import pytest

from tests.dist.fault_fixtures import MATRIX, NORM, ONE_HEAD, check_replicas
from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]


def _cases() -> dict[tuple[Case, str], bool]:
    """Return what is changed in which case, and whether there is a copy to compare it with."""
    return {
        (Case(dp=2, zero=0), MATRIX): True,
        (Case(dp=2, zero=1, dtype="bf16"), NORM): True,
        (Case(tp=2, zero=1), NORM): True,
        (Case(tp=2, zero=1), MATRIX): False,
        (Case(tp=2, zero=1, options="cohere"), ONE_HEAD): True,
        (Case(pp=2, zero=1), NORM): False,
    }


def test_a_copy_that_differs_is_found_and_named_on_every_rank() -> None:
    cases = _cases()
    for found in run_distributed(check_replicas, 2, tuple(cases), timeout_s=100):
        for (case, name), has_copies, message in zip(*zip(*cases.items(), strict=True), found, strict=True):
            expected = f"ranks 0 and 1 must hold the same {name}, but after step 4 they differ"
            assert message == (expected if has_copies else "nothing"), case.name
