# ruff: noqa: E501 - messages are compared whole
"""The warm-up of the batch: what is refused in which words, and the size of each step."""

from __future__ import annotations

import pytest

from trainer.config.batch_sizes import BatchSizes, batch_sizes
from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.config.schema import BatchConfig, LayoutConfig, PipelineSchedule, TridentConfig
from trainer.config.validate import problems

TWO = LayoutConfig(data_parallel_size=2)


@pytest.mark.parametrize(
    ("batch", "layout", "problem"),
    [
        (
            BatchConfig(rampup_sizes=(4,), rampup_steps=(2,), rampup_tokens=(100,)),
            TWO,
            "batch.rampup_steps and batch.rampup_tokens both say when the batch grows; leave one of them out",
        ),
        (
            BatchConfig(rampup_sizes=(4, 8), rampup_steps=(2,)),
            TWO,
            "batch.rampup_steps must hold an end for each of batch.rampup_sizes (2), but holds 1; give each size one",
        ),
        (
            BatchConfig(rampup_tokens=(100,)),
            TWO,
            "batch.rampup_tokens must hold an end for each of batch.rampup_sizes (0), but holds 1; give each size one",
        ),
        (
            BatchConfig(rampup_sizes=(4, 8), rampup_steps=(2, 2)),
            TWO,
            "batch.rampup_steps must be above 0 and grow, but is [2, 2]",
        ),
        (
            BatchConfig(rampup_sizes=(8, 16), rampup_steps=(2, 4)),
            TWO,
            "batch.rampup_sizes must grow up to batch.global_batch_size (16), but is [8, 16]",
        ),
        (
            BatchConfig(rampup_sizes=(8,), rampup_steps=(100,)),
            TWO,
            "the warm-up of the batch must end before train.steps (100), but takes 100 steps; use a shorter one, or a smaller batch.global_batch_size",
        ),
        (
            BatchConfig(rampup_sizes=(3,), rampup_steps=(2,)),
            TWO,
            "batch.rampup_sizes must be divisible by batch.micro_batch_size (1) x layout.data_parallel_size (2) = 2, but has 3",
        ),
        (
            BatchConfig(rampup_sizes=(2,), rampup_steps=(2,)),
            LayoutConfig(pipeline_parallel_size=2, pipeline_schedule=PipelineSchedule.dualpipev),
            "batch.rampup_sizes must hold at least 4 micro-batches (4 sequences) for layout.pipeline_schedule=dualpipev, but has 2",
        ),
    ],
)
def test_what_is_refused(batch: BatchConfig, layout: LayoutConfig, problem: str) -> None:
    assert problems(TridentConfig(batch=batch, layout=layout), None, 0) == [problem]


def test_sizes_of_steps() -> None:
    sizes = batch_sizes(BatchConfig(16, rampup_sizes=(4, 8), rampup_steps=(2, 5)), 10)
    assert [sizes.at(step) for step in range(1, 8)] == [4, 4, 8, 8, 8, 16, 16]
    assert [sizes.sequences(steps) for steps in (0, 1, 2, 3, 5, 7)] == [0, 4, 8, 16, 32, 64]
    assert BatchSizes(16).at(1) == 16
    assert BatchSizes(16).sequences(3) == 48


def test_sizes_end_with_the_step_that_reaches_their_tokens() -> None:
    # Steps of 40 tokens reach 80 exactly; the next ones, of 80, pass 200 with the second.
    assert batch_sizes(BatchConfig(16, rampup_sizes=(4, 8), rampup_tokens=(80, 200)), 10).warmup == ((2, 4), (4, 8))
    # The first size has passed the end of the second, which has no step then.
    assert batch_sizes(BatchConfig(16, rampup_sizes=(8, 12), rampup_tokens=(10, 70)), 10).warmup == ((1, 8), (1, 12))


def test_the_tokens_of_a_run_count_the_warm_up() -> None:
    config = compose(
        ["batch.global_batch_size=16", "batch.rampup_sizes=[4]", "batch.rampup_steps=[10]", "train.steps=20"]
    )
    plan = make_plan(config, 300)
    assert plan.run_tokens == (10 * 4 + 10 * 16) * config.model.seq_length
    assert plan.tokens_of_step(11) == 4 * plan.tokens_of_step(10) == plan.tokens_per_step
