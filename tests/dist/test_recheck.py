"""One bit that comes out wrong once ends the run, and the rank that made it is named: not those that it reached."""

from __future__ import annotations

import socket

import pytest

from tests.dist.fault_fixtures import Flip, recheck_with_flips
from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case

pytestmark = [pytest.mark.dist, pytest.mark.timeout(200)]

FLIPS = (
    Flip(Case(dp=2, zero=1), 1, "blocks.1.mlp.up"),
    Flip(Case(dp=2, zero=3), 0, "final_norm"),
    Flip(Case(tp=2, zero=1), 1, "blocks.0.attention.output", before_sum=True),
    Flip(Case(tp=2, zero=1), 0, "blocks.0.mlp.up"),
    Flip(Case(pp=2, zero=1, schedule="dualpipev", num_micro_batches=4), 1, "mlp.up"),
    Flip(Case(pp=2, zero=1), 0, "mlp.up"),
)


def test_a_flipped_bit_is_found_and_its_rank_named_on_every_rank() -> None:
    found = run_distributed(recheck_with_flips, 2, FLIPS, timeout_s=150)
    for flip, *messages in zip(FLIPS, *found, strict=True):
        assert messages[0] == messages[1], flip
        start = f"rank {flip.rank} on {socket.gethostname()} must compute the same bits twice, but after step 4 "
        assert messages[0].startswith(start), (flip, messages[0])
        assert flip.layer.rpartition("blocks.")[2] in messages[0] or flip.before_sum, (flip, messages[0])
        assert "other ranks)" not in messages[0].partition("differs")[2], messages[0]
