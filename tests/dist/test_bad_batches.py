"""A batch that is not finite on one rank changes nothing on any, under every optimizer that DeepSpeed makes of ours.

The step after it is that of a run that never saw it: masters, moments and model weights are equal bit for bit.
"""

from __future__ import annotations

import math

import pytest

from tests.dist.fault_fixtures import BAD, EMPTY, LAST, MATRIX, NORM, Fault, train_with_faults
from tests.dist.resume_fixtures import Run, run_config, tokens_of
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZER, Case, initial_weights
from trainer.oracle.reference import train_reference

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

LAST_STAGE = "blocks.1.mlp.up.weight"
FAULTS: dict[str, tuple[Fault, ...]] = {
    "alone": (
        Fault(Case(zero=0)),
        Fault(Case(zero=2, dtype="bf16")),
        Fault(Case(zero=3, offload="cpu", offload_parameters=True)),
        Fault(Case(zero=1), parameter=None),
        Fault(Case(zero=3, dtype="fp16", fused_loss=False), EMPTY),
    ),
    "dp2": (
        Fault(Case(dp=2, zero=0), rank=1),
        Fault(Case(dp=2, zero=0), rank=1, after_reduction=True),
        Fault(Case(dp=2, zero=1, dtype="bf16"), rank=1, after_reduction=True),
        Fault(Case(dp=2, zero=1, offload="cpu"), NORM, rank=1),
        Fault(Case(dp=2, zero=2), rank=1),
        Fault(Case(dp=2, zero=2, offload="cpu", dtype="bf16"), rank=1),
        Fault(Case(dp=2, zero=3), rank=1),
        Fault(Case(dp=2, zero=3, dtype="bf16"), parameter=None),
        Fault(Case(dp=2, zero=1, dtype="fp16"), rank=1),
        Fault(Case(dp=2, zero=2, dtype="fp16"), parameter=None),
        Fault(Case(dp=2, zero=0), EMPTY),
        Fault(Case(dp=2, zero=2, offload="cpu", dtype="bf16"), EMPTY),
        Fault(Case(dp=2, zero=1, dtype="fp16"), EMPTY),
    ),
    "tp2": (
        Fault(Case(tp=2, zero=0), NORM, rank=1),
        Fault(Case(tp=2, zero=1), NORM, rank=1),
        Fault(Case(tp=2, zero=1, offload="cpu"), NORM, rank=1),
        Fault(Case(tp=2, zero=3, offload="cpu"), NORM, rank=1),
        Fault(Case(tp=2, zero=3), NORM, rank=1),
        Fault(Case(tp=2, zero=1, dtype="bf16", sequence_parallel=True), NORM, rank=1),
        Fault(Case(tp=2, zero=2), MATRIX, rank=1),
    ),
    "pp2": (
        Fault(Case(pp=2, zero=0), LAST_STAGE, rank=1),
        Fault(Case(pp=2, zero=1, offload="cpu"), NORM, rank=1),
        Fault(Case(pp=2, zero=1, dtype="bf16"), MATRIX, rank=0),
        Fault(Case(pp=2, zero=1, dtype="fp16"), LAST_STAGE, rank=1),
        Fault(Case(pp=2, zero=1, schedule="dualpipev", num_micro_batches=4), LAST_STAGE, rank=1),
        Fault(Case(pp=2, zero=1, dtype="bf16", schedule="dualpipev", num_micro_batches=4), parameter=None),
        Fault(Case(pp=2, zero=0), parameter=None),
        Fault(Case(pp=2, zero=1, dtype="fp16"), EMPTY),
        Fault(Case(pp=2, zero=1, dtype="bf16", schedule="dualpipev", num_micro_batches=4), EMPTY),
    ),
}


def _losses_without_the_bad_batch(case: Case) -> list[float]:
    config = run_config(Run(case))
    steps = [[(tokens[:, :-1], tokens[:, 1:])] for tokens in map(tokens_of, range(1, LAST + 1))]
    del steps[BAD - 1]
    return list(train_reference(config.model, initial_weights(config), steps, OPTIMIZER).losses)


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_batch_changes_nothing_and_all_ranks_agree(name: str) -> None:
    faults = FAULTS[name]
    ranks = run_distributed(train_with_faults, faults[0].case.world_size, faults, timeout_s=60 + 20 * len(faults))
    for index, fault in enumerate(faults):
        for seen in (outcomes[index] for outcomes in ranks):
            assert seen.skipped == [step == BAD for step in range(1, LAST + 1)], fault.name
            assert seen.touched == [], fault.name
            assert seen.wrong == [], fault.name
            assert [math.isfinite(norm) for norm in seen.norms] == [step != BAD for step in range(1, LAST + 1)]
            assert seen.empty == [step == BAD and fault.parameter == EMPTY for step in range(1, LAST + 1)], fault.name
            assert list(map(str, seen.losses)) == list(map(str, ranks[0][index].losses))
            assert [math.isnan(loss) for loss in seen.losses] == seen.empty, fault.name
            counters = {key: value for key, value in seen.counters.items() if key not in ("cur_iter", "cur_hysteresis")}
            if fault.case.dtype == "fp16" and fault.is_gradient:
                assert counters.pop("last_overflow_iter") == BAD - 1, fault.name
            assert counters == {"skipped_steps": 1.0, "global_steps": float(BAD)}, fault.name
        if fault.case.dtype == "fp32":
            losses = list(ranks[0][index].losses)
            del losses[BAD - 1]
            assert losses == pytest.approx(_losses_without_the_bad_batch(fault.case), rel=1e-5), fault.name
