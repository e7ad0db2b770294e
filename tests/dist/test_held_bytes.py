"""Bytes of an engine's tensors by what they are for, as a rank counts them when memory has run out."""

from __future__ import annotations

import gc

import pytest

from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case

pytestmark = [pytest.mark.dist, pytest.mark.timeout(200)]

EXPECTED = {
    # Two replicas share what ZeRO shards. fp32 weights are their own master weights.
    Case(dp=2, zero=0): {"weights": 4, "moments": 8},
    Case(dp=2, zero=1): {"weights": 4, "gradients": 4, "moments": 4},
    Case(dp=2, zero=2): {"weights": 4, "moments": 4},
    Case(dp=2, zero=3): {"weights": 2, "gradients": 2, "moments": 4},
    Case(dp=2, zero=2, dtype="bf16"): {"weights": 2, "master": 2, "moments": 4},
}
"""Bytes for each parameter of the model, between two steps."""


def held(rank: int, world_size: int, cases: tuple[Case, ...]) -> list[dict[str, float]]:
    """Return what a rank holds after two steps of each case, by the model's parameters."""
    from tests.dist.fault_fixtures import _EngineFixture

    found = []
    for case in cases:
        # Wide: norms and biases, which stay whole, must not count.
        fixture = _EngineFixture(case, rank, world_size, hidden_size=256)
        for step in (1, 2):
            fixture.step(step)
        parameters = sum(tensor.numel() for tensor in fixture.engine.local_parameters().values())
        found.append({purpose: size / parameters for purpose, size in fixture.engine.held_bytes().items()})
        del fixture
        gc.collect()
    return found


def test_every_tensor_counts_once_for_what_it_is_for() -> None:
    for found in run_distributed(held, 2, tuple(EXPECTED), timeout_s=150):
        for case, sizes in zip(EXPECTED, found, strict=True):
            kept = {purpose: size for purpose, size in sizes.items() if size > 0.05}
            assert kept == pytest.approx(EXPECTED[case], rel=0.03), case.name
