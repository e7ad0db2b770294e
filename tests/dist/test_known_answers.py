"""What a language model must do, known without any reference: start at chance, and learn one batch by heart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.batches import micro_batches_of
from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case, config_of
from trainer.config.plan import make_plan

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

CASES = [Case(num_micro_batches=4), Case(pp=2, num_micro_batches=4), Case(tp=2, sequence_parallel=True, llama=True)]


def _losses(rank: int, world_size: int, case: Case, vocab_size: int, steps: int) -> list[float]:
    from trainer.engine.build import build_engine
    from trainer.engine.world import start_world

    config = config_of(case)
    config = replace(config, model=replace(config.model, seq_length=32))
    plan = make_plan(config, vocab_size, world_size)
    groups = start_world(plan.mesh, plan.config.runtime, torch.device("cpu"))
    engine = build_engine(plan, groups)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, vocab_size, (plan.num_micro_batches, 33), generator=generator)
    batches = micro_batches_of(tokens, plan, 0)
    return [float(engine.train_step(batches, 3e-3).loss) for _ in range(steps)]


@pytest.mark.parametrize("vocab_size", [61, 1000, 5003])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_untrained_model_knows_nothing(case: Case, vocab_size: int) -> None:
    for losses in run_distributed(_losses, case.world_size, case, vocab_size, 1):
        assert losses[0] == pytest.approx(math.log(vocab_size), rel=0.02)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_batch_is_learned_by_heart(case: Case) -> None:
    for losses in run_distributed(_losses, case.world_size, case, 61, 150):
        assert losses[-1] < 0.1
