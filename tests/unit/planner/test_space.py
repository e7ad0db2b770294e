from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from tests.helpers.published import llama_plan
from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    BatchConfig,
    LayoutConfig,
    OffloadKind,
    PipelineSchedule,
    RecomputeKind,
    Software,
    TridentConfig,
)
from trainer.config.validate import problems
from trainer.planner.space import FREE, distance, layout_words, variants

WORLD = 4


def small(dtype: str = "bf16", **layout: int) -> RunPlan:
    return llama_plan(
        hidden=64,
        heads=4,
        kv_heads=2,
        ffn=96,
        layers=4,
        vocab=512,
        length=32,
        pp=layout.get("pp", 1),
        tp=layout.get("tp", 1),
        dp=layout.get("dp", WORLD),
        micro_batch=1,
        global_batch=16,
        dtype=dtype,
    )


def everything(config: TridentConfig) -> Iterator[TridentConfig]:
    """Yield every combination of the free keys, legal or not."""
    sizes = (1, 2, 3, 4)
    for pp, tp, dp, sp, kind, stage, offload, moves, micro, recompute in product(
        sizes,
        sizes,
        sizes,
        (False, True),
        PipelineSchedule,
        range(4),
        (OffloadKind.none, OffloadKind.cpu),
        (False, True),
        (1, 4, 16),
        (RecomputeKind.none, RecomputeKind.full),
    ):
        if pp * tp * dp == WORLD:
            yield replace(
                config,
                layout=LayoutConfig(pp, tp, dp, sp, kind),
                zero=replace(config.zero, stage=stage, offload=offload, offload_parameters=moves),
                batch=BatchConfig(config.batch.global_batch_size, micro),
                model=replace(config.model, recompute=recompute),
            )


def is_nothing(config: TridentConfig) -> bool:
    """Return whether a stage does what another one does too: one replica has nothing to shard."""
    if config.layout.data_parallel_size != 1:
        return False
    return config.zero.stage >= 2 or (config.zero.stage == 0 and config.zero.offload is OffloadKind.none)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_variants_are_all_legal_layouts_and_no_others(dtype: str) -> None:
    plan = small(dtype)
    chosen = [one.config for one in variants(plan, WORLD)]
    seen = [one for one in chosen if one.batch.micro_batch_size in (1, 4, 16)]
    found = {layout_words(one) for one in seen if one.model.recompute is not RecomputeKind.selective}
    legal = {
        layout_words(config) for config in everything(plan.config) if not problems(config) and not is_nothing(config)
    }
    assert found == legal


def test_a_variant_is_the_plan_that_its_config_makes() -> None:
    plan = small()
    for one in variants(plan, WORLD):
        made = make_plan(one.config, plan.model.vocab_size)
        assert (one.mesh, one.num_micro_batches, one.execution) == (made.mesh, made.num_micro_batches, made.execution)
        assert one.model is plan.model


@pytest.mark.parametrize(("software", "stages"), [(Software.megatron, {0, 1}), (Software.deepspeed, {0, 1, 2, 3})])
def test_other_software_has_the_stages_that_it_can_do(software: Software, stages: set[int]) -> None:
    plan = small()
    plan = replace(plan, config=replace(plan.config, cluster=replace(plan.config.cluster, engine=software)))
    assert {one.config.zero.stage for one in variants(plan, WORLD)} == stages


@pytest.mark.parametrize("key", FREE)
def test_what_is_held_stays(key: str) -> None:
    plan = small(pp=2, tp=2, dp=1)
    group, name = key.split(".")
    values = [getattr(getattr(one.config, group), name) for one in variants(plan, WORLD, {key})]
    assert set(values) == {getattr(getattr(plan.config, group), name)}


def test_words_make_the_layout_again() -> None:
    base = compose(["model=llama_debug", "batch.global_batch_size=16"])
    plan = make_plan(base, 512)
    for one in list(variants(plan, WORLD))[::7]:
        again = compose(["model=llama_debug", "batch.global_batch_size=16", *layout_words(one.config, base)])
        assert layout_words(again) == layout_words(one.config)
        assert distance(again, one.config) == 0


def test_distance_counts_doublings_and_other_keys() -> None:
    config = small(pp=2, tp=2, dp=1).config
    further = replace(config, layout=replace(config.layout, tensor_parallel_size=8, sequence_parallel=True))
    assert distance(further, config) == 3.0
    assert distance(config, config) == 0.0
