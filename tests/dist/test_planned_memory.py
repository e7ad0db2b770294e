"""The planned memory of small layouts against their tensors on live runs, byte by byte: weights, gradients, states."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.dist import run_distributed
from tests.helpers.live_memory import Counted, LiveCase, count, plan_of
from trainer.config.schema_cluster import Software
from trainer.planner.model_parts import ModelParts
from trainer.planner.own_activations import activations_of
from trainer.planner.own_memory import OwnMemory

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]

ONE = (
    LiveCase(),
    LiveCase(recompute="full"),
    LiveCase(recompute="selective"),
    LiveCase(fused_loss=False),
    LiveCase(dropout=0.1),
    LiveCase(llama=True, tied=False),
    LiveCase(zero=1, dtype="bf16", recompute="full", dropout=0.1),
    LiveCase(zero=1, dtype="fp16", recompute="selective", dropout=0.1, llama=True),
    LiveCase(zero=1, offload="cpu"),
    LiveCase(zero=3),
)
TWO = (
    LiveCase(dp=2),
    LiveCase(dp=2, zero=1),
    LiveCase(dp=2, zero=2),
    LiveCase(dp=2, zero=3),
    LiveCase(dp=2, zero=1, dtype="bf16"),
    LiveCase(dp=2, zero=2, dtype="bf16", micro_batches=1),
    LiveCase(dp=2, zero=3, dtype="bf16"),
    LiveCase(dp=2, zero=1, dtype="fp16"),
    LiveCase(dp=2, zero=1, offload="cpu"),
    LiveCase(dp=2, zero=2, offload="cpu", layers=3),
    LiveCase(dp=2, zero=3, offload="cpu"),
    LiveCase(dp=2, zero=1, offload="cpu", dtype="bf16"),
    LiveCase(dp=2, zero=2, offload="cpu", dtype="bf16"),
    LiveCase(tp=2),
    LiveCase(tp=2, sequence_parallel=True, llama=True, fused_loss=False, dropout=0.1),
    LiveCase(pp=2, micro_batches=4),
    LiveCase(pp=2, tied=False, recompute="full", micro_batches=3),
    LiveCase(pp=2, zero=1, dtype="bf16"),
    LiveCase(pp=2, zero=1, dtype="fp16"),
    LiveCase(pp=2, zero=1, offload="cpu"),
    LiveCase(pp=2, schedule="dualpipev", micro_batches=4),
    LiveCase(dp=2, zero=1, optimizer="lion"),
    LiveCase(dp=2, zero=3, dtype="bf16", optimizer="muon", ema=True),
    LiveCase(tp=2, optimizer="muon", llama=True, tied=False),
)
MORE = (
    LiveCase(dp=3, zero=3, llama=True, tied=False),
    LiveCase(pp=3, micro_batches=5, layers=6, recompute="selective"),
    LiveCase(tp=4, llama=True),
    LiveCase(tp=2, dp=2, zero=2, dtype="bf16", sequence_parallel=True, dropout=0.1),
    LiveCase(pp=2, tp=2, sequence_parallel=True, recompute="full", schedule="dualpipev", micro_batches=4, llama=True),
    LiveCase(pp=4, micro_batches=6, llama=True, zero=1, dtype="bf16"),
)


def wrong(case: LiveCase, ranks: list[Counted]) -> list[str]:
    """Return what the plan of a case says otherwise than its ranks."""
    plan = plan_of(case)
    stages = OwnMemory(on_cpu=True).stages(plan)
    parts = ModelParts(Software.trident).ranks(plan)
    found = []
    for index, (stage, part) in enumerate(zip(stages, parts, strict=True)):
        mine = [one for rank, one in enumerate(ranks) if plan.mesh.coordinate(rank).stage == index]
        for name in ("weights", "gradients", "master", "moments"):
            live, said = max(getattr(one, name) for one in mine), getattr(stage, name)
            if live != said:
                found.append(f"{case.name}, stage {index}: {name} {live}, said {said}")
        live = max(one.activations for one in mine)
        # Whole logits are handed to autograd, but count as the loss.
        said = stage.activations + activations_of(plan, part, on_cpu=True).kept_by_loss
        if live != pytest.approx(said, rel=0.005):
            found.append(f"{case.name}, stage {index}: activations {live}, said {said}")
    return found


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [(1, ONE), (2, TWO), *((size, tuple(case for case in MORE if case.world_size == size)) for size in (3, 4))],
)
def test_planned_tensors_are_those_of_live_runs(world_size: int, cases: tuple[LiveCase, ...]) -> None:
    counted = run_distributed(count, world_size, cases, timeout_s=380)
    assert [line for index, case in enumerate(cases) for line in wrong(case, [of[index] for of in counted])] == []


def test_a_plan_that_differs_is_told() -> None:
    case = LiveCase()
    stage = OwnMemory(on_cpu=True).stages(plan_of(case))[0]
    live = Counted(stage.weights, stage.gradients, 0, stage.moments, 0, stage.activations, 0)
    assert wrong(case, [live]) == []
    assert len(wrong(case, [replace(live, gradients=live.gradients + 1)])) == 1
    assert len(wrong(case, [replace(live, activations=live.activations * 2)])) == 1
