"""A rank of a real pipeline stands still: the run ends, and says which one, in which instruction."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.dist.fault_fixtures import train_with_watchdog
from tests.helpers.dist import run_distributed

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]

TIMEOUT_S = 2.0


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        ("data", r"behind is rank 1: stage 1, step 2, data, is in .*fault_fixtures.py:\d+ \(micro_batches\)"),
        ("forward", r"behind is rank 1: stage 1, step 2, pipeline, micro-batch 2, ForwardPass, is in .*\(_spin\)"),
        ("evaluate", r"behind is rank 1: stage 1, step 1, evaluate, micro-batch 1, ForwardPass, is in .*\(_spin\)"),
    ],
)
def test_the_instruction_of_the_rank_that_is_behind_is_told(fault: str, place: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="ended with status 7"):
        run_distributed(train_with_watchdog, 2, fault, tmp_path, TIMEOUT_S, timeout_s=60)
    assert time.monotonic() - started < 60
    told = "".join((tmp_path / f"told_{rank}.txt").read_text() for rank in range(2))
    assert told.count("error:") == 1
    assert re.search(place, told), told
    assert "rank 0: stage 0, step" in told
    assert "waits in torch/distributed/distributed_c10d.py" in told
    for rank in range(2):
        assert "most recent call first" in (tmp_path / "stacks" / f"rank_{rank}.txt").read_text()
