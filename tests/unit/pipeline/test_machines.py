from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.tiny_models import TINY
from tests.unit.pipeline.test_traffic import plan_of
from trainer.config.compose import compose
from trainer.config.plan import make_plan
from trainer.pipeline.machines import placement_warning, size_of

FOUR_BLOCKS = replace(TINY, num_layers=4, num_attention_heads=4)


def test_ranks_in_blocks_keep_tensor_parallelism_inside_and_let_stages_cross() -> None:
    for pp, dp, tp in [(2, 2, 2), (2, 1, 4), (1, 2, 4), (4, 1, 2), (1, 8, 1)]:
        assert placement_warning(plan_of(FOUR_BLOCKS, pp, dp, tp, batch=16), ["a"] * 4 + ["b"] * 4) is None


def test_more_tensor_ranks_than_a_machine_has() -> None:
    found = placement_warning(plan_of(FOUR_BLOCKS, 1, 1, 4), ["gpu-0", "gpu-0", "gpu-1", "gpu-1"])
    assert found == (
        "tensor-parallel ranks should share a machine, but 1 of 1 group does not (ranks 0, 1, 2, 3 are on gpu-0 and "
        "gpu-1): in each step 168 kB leave the busiest machine, and every layer waits for its part; "
        "layout.tensor_parallel_size=2 with layout.pipeline_parallel_size=2 keeps them together: then 12.3 kB leave "
        "it, between stages"
    )


def test_ranks_that_were_dealt_out_in_turn() -> None:
    found = placement_warning(plan_of(FOUR_BLOCKS, 2, 2, 2), ["a", "b"] * 4)
    assert found is not None
    assert "4 of 4 groups do not (ranks 0, 1 are on a and b)" in found
    assert found.endswith("; start the ranks machine by machine (srun --distribution=block), then none do")


def test_without_a_way_out_none_is_named() -> None:
    # Three ranks on a machine hold no whole group of two, and one block makes no two stages.
    found = placement_warning(plan_of(replace(TINY, num_layers=1), 1, 3, 2, batch=6), ["a"] * 3 + ["b"] * 3)
    assert found is not None
    assert "1 of 3 groups does not (ranks 2, 3 are on a and b)" in found
    assert found.endswith("every layer waits for its part")


def test_of_many_ranks_a_few_are_named() -> None:
    config = compose(["model=gpt3_175b", "layout.tensor_parallel_size=16", "batch.global_batch_size=16"])
    found = placement_warning(make_plan(config, 50257, 16), [f"n{rank}" for rank in range(16)])
    assert found is not None
    assert "(ranks 0, 1, 2, 3, 4, 5, 6 and 9 more are on n0, n1, n10, n11, n12, n13, n14 and 9 more)" in found


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e6, "2 MB"), (12.345e9, "12.3 GB"), (3e12, "3 TB")],
)
def test_bytes_in_words(count: float, words: str) -> None:
    assert size_of(count) == words
