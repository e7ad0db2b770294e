from __future__ import annotations

import pytest
import torch

from tests.helpers.batches import micro_batches_of
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZER, VOCABULARY, Case, config_of

CASE = Case(pp=2, schedule="dualpipev", num_micro_batches=8)


def evaluate_between_steps(rank: int, world_size: int) -> tuple[list[float], list[float], list[float]]:
    """Return losses of evaluations of 4, the other 4, 8 and 12 micro-batches, and of steps with and without them."""
    from trainer.config.plan import make_plan
    from trainer.engine.build import build_engine
    from trainer.engine.world import start_world

    plan = make_plan(config_of(CASE), VOCABULARY, world_size)
    groups = start_world(plan.mesh, plan.config.runtime, torch.device("cpu"))
    tokens = torch.randint(0, VOCABULARY, (12, 9), generator=torch.Generator().manual_seed(3))
    batches = micro_batches_of(tokens, plan, 0)
    trained: list[list[float]] = []
    found: list[float] = []
    for evaluates in (True, False):
        engine = build_engine(plan, groups)
        losses = []
        for step in (1, 2):
            if evaluates and step == 2:
                parts = (batches[:4], batches[4:8], batches[:8], batches)
                found = [float(engine.evaluate(part).loss) for part in parts]
            losses.append(float(engine.train_step(batches[:8], OPTIMIZER.lr).loss))
        trained.append(losses)
    return found, trained[0], trained[1]


@pytest.mark.dist
def test_an_evaluation_may_have_another_number_of_micro_batches_than_a_step() -> None:
    for evaluations, trained, alone in run_distributed(evaluate_between_steps, 2, timeout_s=120):
        first, second, both, more = evaluations
        assert both == pytest.approx((first + second) / 2, rel=1e-6)
        assert more != both
        assert trained == alone
