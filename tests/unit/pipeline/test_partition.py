from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.plain_partition import plain_partition
from trainer.config.compose import compose, options
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import LayoutConfig, ModelConfig, PipelineSchedule, RecomputeKind, TridentConfig
from trainer.pipeline.partition import layer_costs, partition_by_cost, stages
from trainer.spec.model import LayerKind

MODEL = ModelConfig(hidden_size=64, num_layers=12, num_attention_heads=4, seq_length=32)
DUAL = PipelineSchedule.dualpipev


def plan_of(model: ModelConfig = MODEL, vocab_size: int = 100, **layout: object) -> RunPlan:
    config = TridentConfig(model=model, layout=replace(LayoutConfig(), **layout))  # type: ignore[arg-type]
    return make_plan(config, vocab_size)


def blocks_per_stage(plan: RunPlan) -> list[int]:
    return [sum(layer.kind is LayerKind.block for layer in stage.layers) for stage in stages(plan)]


def every_cut(costs: Sequence[float], is_block: Sequence[bool], num_stages: int) -> Iterator[tuple[int, ...]]:
    for inner in combinations(range(1, len(costs)), num_stages - 1):
        bounds = (0, *inner, len(costs))
        if all(any(is_block[start:stop]) for start, stop in pairwise(bounds)):
            yield bounds


def quality(costs: Sequence[float], bounds: Sequence[int]) -> tuple[float, float]:
    stage_costs = [sum(costs[start:stop]) for start, stop in pairwise(bounds)]
    return max(stage_costs), sum(cost**2 for cost in stage_costs)


# Whole numbers, so that sums in another order are equal.
layers = st.lists(st.tuples(st.integers(0, 9).map(float), st.booleans()), min_size=1, max_size=10)


@settings(deadline=None, max_examples=300)
@given(layers=layers, num_stages=st.integers(1, 5))
def test_no_other_cut_is_better(layers: list[tuple[float, bool]], num_stages: int) -> None:
    costs, is_block = [cost for cost, _ in layers], [block for _, block in layers]
    if sum(is_block) < num_stages:
        with pytest.raises(ValueError, match=f"must be at least {num_stages}"):
            partition_by_cost(costs, is_block, num_stages)
        return
    bounds = partition_by_cost(costs, is_block, num_stages)
    cuts = list(every_cut(costs, is_block, num_stages))
    assert bounds in cuts
    assert quality(costs, bounds) == min(quality(costs, cut) for cut in cuts)


def test_the_rest_is_balanced_too_where_another_stage_is_the_dearest() -> None:
    # The last stage costs 6 in any case, so the first ones need not be as cheap as they could be: 3 + 2 | 5 | 1 is.
    assert partition_by_cost([3.0, 2.0, 5.0, 1.0, 5.0, 1.0], [True] * 6, 4) == (0, 1, 2, 4, 6)


blocks_with_ends = st.builds(
    lambda block, count, first, last: ([*first, *[block] * count, *last], count, len(first)),
    st.sampled_from([1, 7, 0.1, 1e12 / 3, 3.3e15]),
    st.integers(1, 24),
    st.lists(st.sampled_from([0, 0.1, 5]), max_size=2),
    st.lists(st.sampled_from([0, 0.3, 2, 1e12, 4e15]), max_size=2),
)
"""Costs of a model whose blocks are alike: costs, number of blocks, layers before them."""


@settings(deadline=None, max_examples=300)
@given(model=blocks_with_ends, num_stages=st.integers(1, 9))
def test_a_model_of_equal_blocks_is_cut_as_by_the_plain_recurrence(
    model: tuple[list[float], int, int], num_stages: int
) -> None:
    costs, count, before = model
    is_block = [before <= index < before + count for index in range(len(costs))]
    if count >= num_stages:
        assert partition_by_cost(costs, is_block, num_stages) == plain_partition(costs, is_block, num_stages)


any_cost = st.one_of(
    st.integers(0, 3), st.integers(0, 1 << 48), st.sampled_from([0.1, 0.2, 0.3, 0.7]), st.floats(0, 1e20)
)


@settings(deadline=None, max_examples=500)
@given(layers=st.lists(st.tuples(any_cost, st.booleans()), min_size=1, max_size=14), num_stages=st.integers(1, 6))
def test_any_layers_are_cut_as_by_the_plain_recurrence(layers: list[tuple[float, bool]], num_stages: int) -> None:
    costs, is_block = [cost for cost, _ in layers], [block for _, block in layers]
    if sum(is_block) >= num_stages:
        assert partition_by_cost(costs, is_block, num_stages) == plain_partition(costs, is_block, num_stages)


@pytest.mark.parametrize(("count", "num_stages", "head"), [(96, 16, 2.7), (96, 32, 0.1), (61, 7, 10.3), (40, 40, 1.0)])
def test_a_deep_model_is_cut_as_by_the_plain_recurrence(count: int, num_stages: int, head: float) -> None:
    block = 1.1e12 / 3
    costs = [0.0, *[block] * count, 1e6, head * block]
    is_block = [False, *[True] * count, False, False]
    assert partition_by_cost(costs, is_block, num_stages) == plain_partition(costs, is_block, num_stages)


def test_negative_costs_are_refused() -> None:
    with pytest.raises(ValueError, match="costs must be at least 0, but the smallest is -1"):
        partition_by_cost([2.0, -1.0], [True, True], 1)


def test_too_few_blocks_are_refused_with_numbers() -> None:
    with pytest.raises(ValueError, match=r"number of blocks must be at least 3 \(stages\), but is 2"):
        partition_by_cost([1.0] * 5, [False, True, True, False, False], 3)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 12])
def test_stages_are_consecutive_and_each_holds_a_block(num_stages: int) -> None:
    plan = plan_of(pipeline_parallel_size=num_stages)
    found = stages(plan)
    assert [layer for stage in found for layer in stage.layers] == list(plan.model.layers)
    assert [stage.index for stage in found] == [stage.rank_index for stage in found] == list(range(num_stages))
    assert min(blocks_per_stage(plan)) >= 1
    assert sum(blocks_per_stage(plan)) == 12


def test_equal_blocks_and_a_negligible_head_are_shared_out_evenly() -> None:
    assert blocks_per_stage(plan_of(vocab_size=2, pipeline_parallel_size=4)) == [3, 3, 3, 3]


def test_a_large_vocabulary_leaves_the_last_stage_fewer_blocks_and_the_first_as_many_as_the_middle() -> None:
    plan = plan_of(vocab_size=3000, pipeline_parallel_size=3)
    first, middle, last = blocks_per_stage(plan)
    assert last < first
    # The lookup of the embedding costs no work, however many parameters it has.
    assert abs(first - middle) <= 1
    assert stages(plan)[0].parameters > 1.5 * stages(plan)[1].parameters


def test_a_head_dearer_than_all_blocks_still_shares_its_stage_with_one() -> None:
    assert blocks_per_stage(plan_of(vocab_size=10**6, pipeline_parallel_size=2))[-1] == 1


def test_full_recomputation_makes_a_block_four_forwards_and_a_head_stays_three() -> None:
    plain = plan_of()
    full = plan_of(replace(MODEL, recompute=RecomputeKind.full))
    selective = plan_of(replace(MODEL, recompute=RecomputeKind.selective))
    assert layer_costs(selective) == layer_costs(plain)
    for layer, cost, recomputed in zip(plain.model.layers, layer_costs(plain), layer_costs(full), strict=True):
        assert recomputed == pytest.approx(cost * (4 / 3 if layer.kind is LayerKind.block else 1.0)), layer.name


def test_recomputation_moves_blocks_to_the_stage_with_the_head() -> None:
    model = replace(MODEL, num_layers=32)
    plain = blocks_per_stage(plan_of(model, vocab_size=8000, pipeline_parallel_size=2))
    full = blocks_per_stage(
        plan_of(replace(model, recompute=RecomputeKind.full), vocab_size=8000, pipeline_parallel_size=2)
    )
    assert full[-1] > plain[-1]


def test_explicit_boundaries_are_taken_as_they_are() -> None:
    plan = plan_of(pipeline_parallel_size=3, stage_boundaries=(1, 2))
    assert blocks_per_stage(plan) == [1, 1, 10]
    assert [stage.layers[0].name for stage in stages(plan)] == ["embedding", "blocks.1", "blocks.2"]
    assert [layer.name for layer in stages(plan)[-1].layers[-2:]] == ["final_norm", "head"]


@pytest.mark.parametrize("pp", [2, 3])
def test_dualpipev_folds_twice_as_many_stages_onto_the_ranks(pp: int) -> None:
    plan = plan_of(pipeline_parallel_size=pp, pipeline_schedule=DUAL)
    found = stages(plan)
    assert len(found) == 2 * pp
    assert [stage.rank_index for stage in found] == [*range(pp), *reversed(range(pp))]
    # The first rank holds the embedding and the head.
    own = [layer.name for stage in found if stage.rank_index == 0 for layer in stage.layers]
    assert {"embedding", "head"} <= set(own)


PRESETS = [name for name in options()["model"] if name != "hf"]


def test_there_are_presets() -> None:
    assert {"gpt2_124m", "gpt3_175b", "llama3_70b", "course_900m"} <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_cut_well_in_every_pipeline_that_its_layers_allow(preset: str) -> None:
    config = compose([f"model={preset}", "zero.stage=1"])
    vocab_size = config.model.vocab_size or 2048
    for pp, schedule in ((1, PipelineSchedule.f1b1), (2, DUAL), *((pp, PipelineSchedule.f1b1) for pp in (2, 4, 8))):
        num_stages = pp * (2 if schedule is DUAL else 1)
        if config.model.num_layers < num_stages:
            continue
        layout = replace(config.layout, pipeline_parallel_size=pp, pipeline_schedule=schedule)
        plan = make_plan(replace(config, layout=layout), vocab_size)
        found = stages(plan)
        assert len(found) == num_stages
        assert sum(stage.parameters for stage in found) == plan.model.parameter_count
        assert math.fsum(stage.cost_share for stage in found) == pytest.approx(1.0, abs=1e-12)
        assert min(blocks_per_stage(plan)) >= 1
        # No stage is dearer than its fair share by more than one block, unless a single block and the head are.
        block = max(layer_costs(plan)[2:-2]) / sum(layer_costs(plan))
        head = layer_costs(plan)[-1] / sum(layer_costs(plan))
        assert max(stage.cost_share for stage in found) <= max(1 / num_stages + block, head + block) + 1e-12


def test_partitioning_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trainer.pipeline.partition; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
