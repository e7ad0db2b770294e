"""A rank that is slow is slow by itself; those that wait for it are not, though their steps take as long."""

from __future__ import annotations

import math

import pytest

from tests.dist.fault_fixtures import own_milliseconds
from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

CASES = (
    Case(dp=2, zero=1),
    Case(tp=2, zero=1),
    Case(tp=2, zero=1, sequence_parallel=True),
    Case(pp=2, zero=1),
    Case(pp=2, zero=1, schedule="dualpipev", num_micro_batches=4),
)


def test_waits_for_a_slow_rank_are_not_own_time() -> None:
    fast, slow = run_distributed(own_milliseconds, 2, CASES, timeout_s=100)
    for case, waiting, sleeping in zip(CASES, fast, slow, strict=True):
        # Nothing but the sleep is known beforehand; the other rank waits for all of it in its collectives.
        assert sleeping >= 30, case.name
        assert waiting < sleeping, case.name


def test_with_zero_3_it_cannot_be_told() -> None:
    for found in run_distributed(own_milliseconds, 2, (Case(dp=2, zero=3),), timeout_s=100):
        assert math.isnan(found[0])
