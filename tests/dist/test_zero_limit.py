"""ZeRO-3 trains a model that a rank alone has no room for, and never holds the whole of it."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest

from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case

pytestmark = [pytest.mark.dist, pytest.mark.timeout(200)]

HIDDEN_SIZE, LAYERS = 512, 16
STATES = 16 * 12 * HIDDEN_SIZE**2 * LAYERS
"""Bytes of weights, gradients and moments, all in fp32."""
LIMIT = int(STATES / 1.5)


def train_within(rank: int, world_size: int) -> list[float] | str:
    """Train two steps where a rank may take LIMIT more memory than it has; return the losses, or what was refused."""
    from tests.dist.fault_fixtures import _EngineFixture

    case = Case(dp=world_size, zero=3)
    # What libraries take at their first use is no part of a model.
    first = _EngineFixture(case, rank, world_size)
    first.step(1)
    del first
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + LIMIT, before[1]))
    try:
        fixture = _EngineFixture(case, rank, world_size, hidden_size=HIDDEN_SIZE, num_layers=LAYERS)
        return [float(fixture.step(step).loss) for step in (1, 2)]
    except (MemoryError, RuntimeError) as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields["VmData"].split()[0])


def test_four_ranks_train_what_one_has_no_room_for() -> None:
    alone = run_distributed(train_within, 1, timeout_s=90)[0]
    assert isinstance(alone, str), alone
    assert "allocate memory" in alone
    together = run_distributed(train_within, 4, timeout_s=150)
    assert all(isinstance(losses, list) for losses in together), together
    assert together == [together[0]] * 4
