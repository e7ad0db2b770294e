"""The search against every layout predicted on its own, rank by rank."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.clusters import cluster
from tests.helpers.published import gpt_plan, llama_plan
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype
from trainer.config.schema_cluster import Software
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.layout_search import is_legal, nearest, search
from trainer.planner.predict import Planner
from trainer.planner.prediction import GIB
from trainer.planner.space import distance, layout_words, variants

WORLD = 16


def small_cluster(gib: float, software: Software = Software.trident, host_gib: float | None = None) -> Cluster:
    """Return two machines with 8 devices of so much memory."""
    host = None if host_gib is None else Constant(host_gib * GIB, "test")
    memory, peak = Constant(gib * GIB, "test"), dict.fromkeys(Dtype, Constant(1e14, "test"))
    machines = replace(cluster(), nodes=2, peak_flops=peak, software=software)
    return replace(machines, memory_bytes=memory, host_memory_bytes=host)


def gpt(dtype: str = "bf16", tied: bool = True) -> RunPlan:
    return gpt_plan(
        hidden=1024,
        heads=16,
        layers=10,
        vocab=50257,
        length=512,
        pp=1,
        tp=1,
        dp=WORLD,
        micro_batch=1,
        global_batch=32,
        dtype=dtype,
        dropout=0.0,
        tied=tied,
    )


def llama() -> RunPlan:
    return llama_plan(
        hidden=512,
        heads=8,
        kv_heads=2,
        ffn=1536,
        layers=9,
        vocab=32000,
        length=256,
        pp=1,
        tp=1,
        dp=WORLD,
        micro_batch=2,
        global_batch=32,
        dtype="fp32",
    )


CASES = [
    (gpt(), small_cluster(4)),
    (gpt("fp16", tied=False), small_cluster(5, Software.deepspeed)),
    (gpt(), small_cluster(80, Software.megatron)),
    (llama(), small_cluster(6, host_gib=4)),
    (llama(), replace(small_cluster(3), cores_per_node=32)),
    # Nothing fits.
    (gpt(), small_cluster(0.5)),
]


@pytest.mark.parametrize(("base", "machines"), CASES)
def test_the_fullest_ranks_are_among_those_that_a_search_looks_at(base: RunPlan, machines: Cluster) -> None:
    planner, alone = Planner(machines), Planner(machines)
    fewer = 0
    for plan in variants(base, WORLD):
        stages, found = alone.stages(plan), planner.fullest(plan)
        assert max(stage.peak for stage in found) == max(stage.peak for stage in stages)
        assert max(stage.host for stage in found) == max(stage.host for stage in stages)
        assert set(found) <= set(stages)
        fewer += len(found) < len(stages)
    assert fewer > 0


@pytest.mark.parametrize(("base", "machines"), CASES)
def test_a_search_finds_what_predictions_of_all_layouts_say(base: RunPlan, machines: Cluster) -> None:
    planner = Planner(machines)
    margin = planner.profile.memory_error.value
    plans = list(variants(base, WORLD))
    found = search(planner, base, WORLD, shown=3)
    other = Planner(machines)
    ranks = [other.stages(plan) for plan in plans]
    peaks = [max(stage.peak for stage in stages) for stages in ranks]
    fits = [other.fits(plan, stages, margin) for plan, stages in zip(plans, ranks, strict=True)]
    assert found.considered == len(plans)
    assert found.fitting == sum(fits)
    assert found.least is not None
    assert found.least.prediction.peak == min(peaks)
    speeds = {
        layout_words(plan.config): other.predict(plan, exact=False).tokens_per_second
        for plan, fit in zip(plans, fits, strict=True)
        if fit and is_legal(plan)
    }
    if not speeds:
        assert found.ranked == found.pareto == ()
        return
    best = max(speeds, key=lambda words: speeds[words])
    assert found.pareto[0].prediction.tokens_per_second == speeds[best]


@pytest.mark.parametrize(("base", "machines"), CASES)
def test_a_planner_that_knows_other_layouts_says_the_same_as_a_new_one(base: RunPlan, machines: Cluster) -> None:
    planner = Planner(machines)
    for index, plan in enumerate(variants(base, WORLD)):
        found = planner.fullest(plan), planner.timed(plan, exact=False)
        if index % 29 == 0:
            new = Planner(machines)
            assert found == (new.fullest(plan), new.timed(plan, exact=False))


@pytest.mark.parametrize(("base", "machines"), CASES)
def test_the_nearest_layouts_are_those_of_all_that_fit(base: RunPlan, machines: Cluster) -> None:
    planner = Planner(machines)
    margin = planner.profile.memory_error.value
    least = sorted(
        distance(plan.config, base.config)
        for plan in variants(base, WORLD)
        if planner.fits(plan, planner.stages(plan), margin) and is_legal(plan)
    )
    found = nearest(Planner(machines), base, [WORLD], count=3)
    assert [distance(one.config, base.config) for one in found] == least[:3]
