"""What a calibration measures on real ranks: that it is there and can be true, never how long it took."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.dist import run_distributed
from trainer.calibration.measurements import Measurements
from trainer.calibration.measuring import measured_by_ranks
from trainer.calibration.trials import PASSES, Trial
from trainer.config.schema import DeviceKind

pytestmark = [pytest.mark.dist, pytest.mark.timeout(240)]

TINY = (
    *("model.hidden_size=64", "model.num_layers=2", "model.num_attention_heads=2", "model.seq_length=16"),
    *("batch.global_batch_size=4", "batch.micro_batch_size=1", "precision=fp32"),
)


def measured(rank: int, world_size: int) -> Measurements:
    """Measure with the smallest budget: kernels, and three trials, the last of which cannot be built."""
    import torch

    from trainer.calibration.measurements import joined
    from trainer.calibration.measuring_rank import kernels, steps
    from trainer.calibration.trials import Trial
    from trainer.config.schema import DeviceKind

    layouts = {"dp2": ("layout=dp2", "zero=stage1"), "pp2": ("layout=pp2", "zero=stage0")}
    plans = {
        name: Trial(name, world_size, (*words, *TINY)).plan(DeviceKind.cpu, vocab_size=64)
        for name, words in layouts.items()
    }
    cpu = torch.device("cpu")
    found = [kernels(list(plans.values()), cpu, budget_s=1e-3)]
    plans["broken"] = replace(plans["dp2"], model=None)  # type: ignore[arg-type]
    return joined([*found, *(steps(name, plan, cpu, rounds=2) for name, plan in plans.items())])


def test_ranks_measure_kernels_messages_and_steps() -> None:
    found, _ = run_distributed(measured, 2)
    assert found.ranks == 2
    assert {one.kind for one in found.messages} == {"all_reduce", "all_gather", "reduce_scatter", "send"}
    assert all(0 < one.seconds < 60 for one in (*found.messages, *found.gemms, *found.attention, *found.streams))
    assert {one.dtype for one in found.gemms} == {"fp32"}
    assert [(one.trial, len(one.seconds)) for one in found.steps] == [("dp2", 2), ("pp2", 2)]
    assert all(0 < seconds < 60 for one in found.steps for seconds in one.seconds)
    assert found.failed is not None
    assert list(found.failed) == ["broken"]
    assert Measurements.from_dict(found.to_dict()) == found


def test_each_trial_runs_in_a_process_of_its_own_as_often_as_it_should() -> None:
    told: list[str] = []
    found = measured_by_ranks([Trial("tiny", 2, ("layout=dp2", *TINY))], DeviceKind.cpu, 3, 1e-3, told.append)
    assert [(one.trial, len(one.seconds)) for one in found.steps] == [("tiny", PASSES * 2)]
    assert found.gemms
    assert told == [
        "matrix multiplication, attention, memory, messages",
        "steps of tiny, 1 of 2",
        "steps of tiny, 2 of 2",
    ]
