"""What each ZeRO stage keeps between steps, counted tensor by tensor, against what it should keep."""

from __future__ import annotations

import gc
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case

pytestmark = [pytest.mark.dist, pytest.mark.timeout(200)]

CASES = tuple(Case(dp=2, zero=stage) for stage in (0, 1, 2, 3))


def kept_per_parameter(rank: int, world_size: int, cases: tuple[Case, ...]) -> list[float]:
    """Return the bytes of all tensors after three steps, by the model's parameters."""
    from tests.dist.fault_fixtures import _EngineFixture

    found = []
    for case in cases:
        gc.collect()
        before = _tensor_bytes()
        # Wide: what a process keeps besides, such as cached masks, must not count.
        fixture = _EngineFixture(case, rank, world_size, hidden_size=256)
        for step in (1, 2, 3):
            fixture.step(step)
        gc.collect()
        parameters = sum(tensor.numel() for tensor in fixture.engine.local_parameters().values())
        gc.collect()
        found.append((_tensor_bytes() - before) / parameters)
        del fixture
    return found


def _tensor_bytes() -> int:
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors += [tensor.data for tensor in tensors if isinstance(tensor, torch.nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    # A compiler's stand-ins for tensors, which another test may leave in the process that is forked, have no memory.
    real = [storage for storage in storages if storage.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in real}.values())


def largest_share_while_built(rank: int, world_size: int) -> float:
    """Return the most bytes of tensors that there are between two draws of weights, by those of the whole model."""
    from tests.dist.fault_fixtures import _EngineFixture
    from trainer.tensor_parallel import init

    draw, held = init.draw_normal, []

    def watched(spec: Any, std: float, seed: int) -> torch.Tensor:
        gc.collect()
        held.append(_tensor_bytes())
        return draw(spec, std, seed)

    with patch.object(init, "draw_normal", watched):
        fixture = _EngineFixture(Case(dp=2, zero=3), rank, world_size, hidden_size=256, num_layers=4)
    return (max(held) - held[0]) / (4 * fixture.plan.model.parameter_count)


def test_no_rank_holds_the_whole_model_while_it_is_built() -> None:
    # Half of it is its own; the last tensors are still to come.
    assert max(run_distributed(largest_share_while_built, 2, timeout_s=100)) < 0.55


def test_every_stage_keeps_what_it_should_and_no_second_copy() -> None:
    kept = run_distributed(kept_per_parameter, 2, CASES, timeout_s=150)[0]
    # Weights and moments; with ZeRO halves of what it shards, as two replicas share it. fp32 weights are their own
    # masters. ZeRO-1 keeps the place of all gradients, and ZeRO-3 its shard of them.
    expected = (4 + 8, 4 + 4 + 4, 4 + 4, 2 + 2 + 4)
    for case, found, bytes_ in zip(CASES, kept, expected, strict=True):
        # Norms and biases stay whole with ZeRO-3, partitions are padded: little, but not nothing.
        assert found == pytest.approx(bytes_, rel=0.02), case.name
