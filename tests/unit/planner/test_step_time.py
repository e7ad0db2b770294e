"""The time model: what makes a step longer, and what does not. Known answers are in `test_published_times`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.helpers.published import gpt_plan
from tests.helpers.published_times import a100s, machines
from trainer.config.plan import RunPlan
from trainer.config.schema import Dtype, OffloadKind, PipelineSchedule
from trainer.config.schema_cluster import Software
from trainer.errors import ConfigError
from trainer.planner.cluster import Cluster
from trainer.planner.constants import Constant
from trainer.planner.links import Group, Wires, places
from trainer.planner.profile import Collective
from trainer.planner.profiles import MEGATRON_A100, profile_for
from trainer.planner.step_time import TimedStep, TimeModel


def plan_of(**changes: object) -> RunPlan:
    """Return a plan of a GPT with 16 blocks of width 2048 on 16 devices."""
    values: dict[str, object] = {"hidden": 2048, "heads": 16, "layers": 16, "vocab": 51200, "length": 2048}
    values |= {"pp": 2, "tp": 2, "dp": 4, "micro_batch": 1, "global_batch": 64, "zero_stage": 1, "dtype": "bf16"}
    return gpt_plan(**values | changes)  # type: ignore[arg-type]


def timed(software: Software = Software.trident, nodes: int = 2, **changes: object) -> TimedStep:
    """Return the step of `plan_of(**changes)` on A100s."""
    cluster = a100s(nodes, 25.0, software)
    return TimeModel(cluster, profile_for(cluster)).step(plan_of(**changes))


@pytest.fixture
def cores() -> Cluster:
    """A machine of two cores, whose ranks talk through its memory."""
    a100 = a100s(1, 1.0, Software.trident)
    slow = {"peak_flops": {Dtype.fp32: Constant(1e11, "test")}, "memory_bandwidth": Constant(2e10, "test")}
    return replace(a100, device="CPU", devices_per_node=8, cores_per_node=2, **slow)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("pp", [1, 2, 4])
def test_equal_stages_take_the_time_of_the_formula(pp: int, exact: bool) -> None:
    """(m + p - 1) times of a micro-batch, and as much of it as p - 1 of them is bubble (arXiv 2104.04473, 2.2)."""
    cluster = a100s(2, 1e6, Software.megatron)
    plan = plan_of(pp=pp, tp=1, dp=16 // pp, zero_stage=0, vocab=8)
    found = TimeModel(cluster, MEGATRON_A100).step(plan, exact)
    # The embedding and the head of 8 tokens are next to nothing.
    assert found.passes.forward == pytest.approx([found.passes.forward[0]] * pp, rel=0.01)
    count = 64 * pp // 16
    assert found.bubble_fraction == pytest.approx((pp - 1) / (count + pp - 1), rel=0.02)


@pytest.mark.parametrize("exact", [True, False])
def test_the_parts_add_up_to_the_micro_batches_of_the_busiest_rank(exact: bool) -> None:
    """What it computes, its waits, gradients, the update."""
    cluster = a100s(2, 25.0, Software.trident)
    found = TimeModel(cluster, profile_for(cluster)).step(plan_of(pp=2, tp=2, dp=4), exact)
    longest = max(f + b for f, b in zip(found.passes.forward, found.passes.backward, strict=True))
    time = found.time
    busy = time.gemm + time.attention + time.elementwise + time.recompute + time.launch + time.tensor_parallel
    assert busy - profile_for(cluster).step_s.value == pytest.approx(16 * longest)
    assert time.pipeline >= 16 * found.message_s
    assert time.total == pytest.approx(busy + time.pipeline + time.bubble + time.data_parallel + time.optimizer)


@pytest.mark.parametrize(
    ("part", "more", "less"),
    [
        ("recompute", {"recompute": "full"}, {"recompute": "selective"}),
        ("recompute", {"recompute": "selective"}, {"recompute": "none"}),
        ("tensor_parallel", {"tp": 4, "dp": 2}, {"tp": 2, "dp": 4}),
        ("tensor_parallel", {"tp": 16, "pp": 1, "dp": 1}, {"tp": 8, "pp": 1, "dp": 2}),
        ("elementwise", {}, {"sequence_parallel": True}),
        ("elementwise", {"dropout": 0.1}, {"dropout": 0.0}),
        ("launch", {"pp": 1, "dp": 8, "micro_batch": 1}, {"pp": 1, "dp": 8, "micro_batch": 4}),
        ("optimizer", {"zero_stage": 0}, {"zero_stage": 1}),
        ("pipeline", {"pp": 4, "dp": 2}, {"pp": 2, "dp": 4}),
    ],
)
def test_what_makes_a_part_longer(part: str, more: dict[str, object], less: dict[str, object]) -> None:
    """Each is true of any machine."""
    longer, shorter = (getattr(timed(**changes).time, part) for changes in (more, less))  # type: ignore[arg-type]
    assert longer > shorter


def test_gradients_of_later_micro_batches_travel_again_from_stage_2_on() -> None:
    """Stages 2 and 3 keep no whole gradients that could wait for the last micro-batch."""

    def moved(stage: int) -> float:
        time = timed(pp=1, dp=8, zero_stage=stage).time
        return time.data_parallel + time.data_parallel_hidden

    assert moved(2) > 4 * moved(1)
    assert moved(3) > moved(2)


def test_what_hides_gradients_hides_no_weights() -> None:
    """Weights of ZeRO-3 and gradients travel beside the same backward: its share is given once."""
    cluster = a100s(2, 1e-3, Software.trident)
    profile = profile_for(cluster)
    found = TimeModel(cluster, profile).step(plan_of(pp=1, tp=1, dp=16, zero_stage=3))
    window = profile.overlap.value * (found.passes.forward[0] + found.passes.backward[0])
    assert 0 < found.time.data_parallel_hidden <= 4 * window * (1 + 1e-9)


def test_interleaving_divides_the_bubble() -> None:
    """By about the number of chunks (arXiv 2104.04473, 2.2)."""
    plan = plan_of(pp=4, tp=2, dp=2)
    whole, cut = (
        TimeModel(replace(a100s(2, 25.0, Software.megatron), virtual_stages=chunks), MEGATRON_A100).step(plan)
        for chunks in (1, 2)
    )
    assert cut.bubble_fraction < 0.6 * whole.bubble_fraction
    assert len(cut.passes.owners) == 2 * len(whole.passes.owners)


def test_interleaving_hides_gradients_behind_the_backward_of_later_chunks() -> None:
    """A chunk's gradients are whole while the next chunks still compute."""
    plan = plan_of(pp=2, tp=4, dp=4)
    exposed = []
    for chunks in (1, 2):
        cluster = replace(machines("H100", 4, 5.0, Software.megatron), virtual_stages=chunks)
        time = TimeModel(cluster, profile_for(cluster)).step(plan).time
        exposed.append(time.data_parallel)
        assert time.data_parallel_hidden > 0
    assert exposed[1] < exposed[0]


@pytest.mark.parametrize("exact", [True, False])
def test_interleaving_needs_a_multiple_of_the_stages(exact: bool) -> None:
    """Megatron's schedule takes micro-batches in groups of as many as there are ranks."""
    model = TimeModel(replace(a100s(2, 25.0, Software.megatron), virtual_stages=2), MEGATRON_A100)
    with pytest.raises(ConfigError, match="a multiple of 4 micro-batches"):
        model.step(plan_of(pp=4, tp=2, dp=2, global_batch=20), exact)


def test_the_closed_form_is_near_the_simulated_schedule() -> None:
    """Search uses it for all candidates, and compares the best ones by the simulator."""
    for schedule in (PipelineSchedule.f1b1, PipelineSchedule.dualpipev):
        plan = plan_of(pp=4, tp=2, dp=2)
        plan = replace(
            plan, config=replace(plan.config, layout=replace(plan.config.layout, pipeline_schedule=schedule))
        )
        cluster = a100s(2, 25.0, Software.trident)
        model = TimeModel(cluster, profile_for(cluster))
        assert model.step(plan, exact=False).time.total == pytest.approx(model.step(plan).time.total, rel=0.03)


def test_offload_moves_the_update_to_the_host() -> None:
    """It takes longer there, by what moves over the bus and through the host's memory."""
    here = timed(pp=1, dp=8, zero_stage=2).time
    plan = plan_of(pp=1, dp=8, zero_stage=2)
    zero = replace(plan.config.zero, offload=OffloadKind.cpu)
    cluster = a100s(2, 25.0, Software.trident)
    there = TimeModel(cluster, profile_for(cluster)).step(replace(plan, config=replace(plan.config, zero=zero))).time
    assert there.offload > here.optimizer > there.optimizer > 0
    assert here.offload == 0


def test_the_precision_must_be_one_of_the_device() -> None:
    """A V100 has no bf16."""
    cluster = replace(a100s(2, 25.0, Software.trident), device="V100", peak_flops={Dtype.fp16: Constant(125e12, "")})
    with pytest.raises(ConfigError, match=r"precision.dtype must be one of fp16 on cluster.device=V100, but is bf16"):
        TimeModel(cluster, profile_for(cluster)).step(plan_of())


@pytest.mark.parametrize(("kind", "key"), [(OffloadKind.cpu, "host_bandwidth"), (OffloadKind.nvme, "nvme_bandwidth")])
def test_offload_needs_to_know_the_memory_that_it_moves_to(kind: OffloadKind, key: str) -> None:
    """Nothing is made up."""
    plan = plan_of(pp=1, dp=8, zero_stage=2)
    plan = replace(plan, config=replace(plan.config, zero=replace(plan.config.zero, offload=kind)))
    cluster = a100s(2, 25.0, Software.trident)
    profile = profile_for(cluster)
    assert TimeModel(cluster, profile).step(plan).time.offload > 0
    unknown = replace(profile, **{key: None})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"zero.offload must be none under the profile"):
        TimeModel(cluster, unknown).step(plan)


def test_places_of_groups() -> None:
    """tp is innermost, then dp; 8 devices a machine."""
    cluster = a100s(8, 25.0, Software.trident)
    found = places(4, 4, 4, cluster)
    assert found.tensor == Group(4, 4)
    assert found.data == Group(4, 2)
    assert found.data.nodes == 2
    assert found.pipe.nodes == 2
    assert places(2, 2, 2, cluster).pipe.nodes == 1
    assert places(1, 1, 16, cluster).tensor.nodes == 2


@pytest.mark.parametrize("kind", list(Collective))
def test_collectives_take_longer_between_machines(kind: Collective) -> None:
    """And not at all alone."""
    wires = Wires(a100s(2, 25.0, Software.trident), MEGATRON_A100)
    inside, across = (wires.seconds(kind, 1e8, group) for group in (Group(2, 2), Group(2, 1)))
    assert across > 2 * inside > 0
    assert wires.seconds(kind, 1e8, Group(1, 1)) == 0
    assert wires.seconds(kind, 2e8, Group(2, 2)) > inside


def test_cpu_ranks_share_the_cores(cores: Cluster) -> None:
    """Twice the ranks do not compute twice as fast, and two ranks on two cores do."""
    profile = profile_for(cores)

    def gemm(dp: int) -> float:
        plan = plan_of(pp=1, tp=1, dp=dp, dtype="fp32")
        return TimeModel(cores, profile).step(plan).time.gemm

    work = [dp * gemm(dp) for dp in (1, 2, 4)]
    assert work[1] == pytest.approx(2 * work[0], rel=0.01)
    assert gemm(4) == pytest.approx(gemm(1), rel=0.01)


def under(cluster: Cluster, changes: dict[str, float], **plan: object) -> float:
    """Return the seconds of a step under a profile with changed constants."""
    profile = replace(profile_for(cluster), **{name: Constant(value, "test") for name, value in changes.items()})  # type: ignore[arg-type]
    return TimeModel(cluster, profile).step(plan_of(**plan)).time.total


@pytest.mark.parametrize(("sharded", "calls"), [(False, 6), (True, 14)])
def test_ranks_wait_for_one_another_at_each_collective(cores: Cluster, sharded: bool, calls: int) -> None:
    """A block sums twice in forward and twice in backward; along the sequence it gathers or scatters 4 and 6 times.

    The embedding sums once in forward, and the head once in backward; along the sequence both twice.
    """
    plan: dict[str, object] = {"pp": 1, "tp": 2, "dp": 1, "layers": 1, "global_batch": 3, "dtype": "fp32"}
    plan |= {"sequence_parallel": sharded, "recompute": "none"}
    more = under(cores, {"tensor_call_s": 1.0}, **plan) - under(cores, {"tensor_call_s": 0.0}, **plan)
    assert more == pytest.approx(3 * calls)


def test_sequences_first_are_laid_out_anew_for_collectives_along_the_sequence(cores: Cluster) -> None:
    def moved(software: Software, micro_batch: int) -> float:
        cluster = replace(cores, software=software)
        plan = {"pp": 1, "tp": 2, "dp": 1, "micro_batch": micro_batch, "global_batch": 2, "dtype": "fp32"}
        times = [
            TimeModel(cluster, profile_for(cores)).step(plan_of(sequence_parallel=sharded, **plan)).time
            for sharded in (True, False)
        ]
        return times[0].tensor_parallel - times[1].tensor_parallel

    assert moved(Software.megatron, 2) < moved(Software.megatron, 1)
    assert moved(Software.trident, 2) > 2 * moved(Software.trident, 1)


def test_buckets_are_copied_where_gradients_do_not_lie_in_one_tensor(cores: Cluster) -> None:
    def copied(offload: OffloadKind = OffloadKind.none, **changes: object) -> float:
        plan = plan_of(**{"pp": 1, "tp": 1, "dp": 2, "global_batch": 8, "dtype": "fp32", **changes})
        plan = replace(plan, config=replace(plan.config, zero=replace(plan.config.zero, offload=offload)))
        times = []
        for size in (1000.0, 0.0):
            profile = replace(
                profile_for(cores), shard_bytes=Constant(size, "test"), host_bandwidth=Constant(1e10, "test")
            )
            times.append(TimeModel(cores, profile).step(plan).time.total)
        return times[0] - times[1]

    once = copied(zero_stage=2, micro_batch=4)
    assert once > 0
    assert copied(zero_stage=1, micro_batch=1) == 0
    assert copied(OffloadKind.cpu, zero_stage=1, micro_batch=1) == pytest.approx(once)
    assert copied(zero_stage=2, micro_batch=1) == pytest.approx(4 * once)


def test_ranks_of_a_pipeline_that_wait_leave_their_core_to_others(cores: Cluster) -> None:
    """Four stages on two cores need at least their work over two, and the bubble shrinks."""
    wide = replace(cores, cores_per_node=4)
    profile = profile_for(cores)
    plan = plan_of(pp=4, tp=1, dp=1, dtype="fp32", global_batch=4)
    on_four = TimeModel(wide, profile).step(plan)
    on_two = TimeModel(cores, profile).step(plan)
    assert on_two.bubble_fraction < on_four.bubble_fraction


def counted(function: Callable[[RunPlan], object], plans: list[RunPlan]) -> int:
    """Return how many calls a profile counts."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        for plan in plans:
            function(plan)
    finally:
        sys.setprofile(None)
    return calls


def test_candidates_that_share_a_model_cost_little() -> None:
    """Once the layers are known, a candidate walks neither blocks nor tensors, whatever their number is."""
    cluster = a100s(2, 25.0, Software.trident)
    calls = []
    for layers in (8, 32):
        model = TimeModel(cluster, profile_for(cluster))
        base = plan_of(layers=layers)
        plans = [replace(base, num_micro_batches=count) for count in range(1, 11)]
        model.step(base, exact=False)
        kept = model.kept
        calls.append(counted(lambda plan, used=model: used.step(plan, exact=False), plans))  # type: ignore[misc]
        assert model.kept == kept
    assert calls[0] == calls[1]
