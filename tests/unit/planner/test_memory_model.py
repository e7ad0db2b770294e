"""The memory model as the planner asks it: by software, quick, and honest about what it was not checked on."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.helpers.clusters import cluster
from tests.helpers.published import gpt_plan, llama_plan
from trainer.config.plan import RunPlan
from trainer.config.schema import PipelineSchedule
from trainer.config.schema_cluster import Software
from trainer.mesh import Mesh
from trainer.planner.memory_model import MemoryModel, memory_constants, unchecked
from trainer.planner.own_memory import in_flight


def plan(pp: int = 1, tp: int = 1, dp: int = 1, micro_batch: int = 1, dropout: float = 0.0) -> RunPlan:
    return gpt_plan(
        hidden=1024,
        heads=16,
        layers=24,
        vocab=50257,
        length=1024,
        pp=pp,
        tp=tp,
        dp=dp,
        micro_batch=micro_batch,
        global_batch=64 * dp * micro_batch,
        dtype="bf16",
        dropout=dropout,
    )


@pytest.mark.parametrize("software", list(Software))
def test_every_software_has_a_stage_for_each_pipeline_rank(software: Software) -> None:
    of = replace(cluster(), software=software)
    stages = MemoryModel(of).stages(plan(pp=4, tp=2))
    assert len(stages) == 4
    assert [stage.in_flight for stage in stages] == [4, 3, 2, 1]
    assert all(stage.peak >= sum(stage.by_purpose.values()) > stage.overhead > 0 for stage in stages)
    assert all(constant.source for constant in memory_constants(of).values())
    assert memory_constants(of)


def test_tied_embeddings_are_held_by_both_ends() -> None:
    memory = MemoryModel(cluster())
    ends = memory.stages(plan(pp=4))
    rows = 50257 + -50257 % plan().execution.vocab_unit
    assert ends[0].weights + ends[3].weights > 2 * 2 * 1024 * rows
    assert ends[1].weights < ends[0].weights


def test_in_flight_of_dualpipev_are_those_of_its_schedule() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.pipe.schedule import BackwardPass, DualPipeVSchedule, ForwardPass

    for pp, count in ((2, 4), (3, 8), (4, 8), (8, 20)):
        folded = plan(pp=pp)
        layout = replace(folded.config.layout, pipeline_schedule=PipelineSchedule.dualpipev)
        folded = replace(folded, config=replace(folded.config, layout=layout))
        for rank in range(pp):
            held, most = [0, 0], [0, 0]
            for commands in DualPipeVSchedule(count, pp, rank).steps():
                for command in commands:
                    if isinstance(command, ForwardPass):
                        held[command.phase] += 1
                    if isinstance(command, BackwardPass):
                        most = max(most, [*held], key=sum)
                        held[command.phase] -= 1
            assert in_flight(folded, rank) == tuple(most)


def test_a_known_layout_costs_far_less_than_a_third_of_a_millisecond() -> None:
    memory = MemoryModel(cluster())
    plans = [
        replace(one, mesh=Mesh(one.pipeline_parallel_size, dp, one.tensor_parallel_size))
        for one in (plan(), plan(pp=2, tp=2), plan(pp=8, micro_batch=4))
        for dp in range(1, 65)
    ]
    for one in plans:
        memory.stages(one)
    begun = time.process_time()
    for one in plans:
        memory.stages(one)
    assert (time.process_time() - begun) / len(plans) < 1e-3


def test_what_was_not_checked_is_told() -> None:
    assert unchecked(plan(), cluster()) == (
        "Memory was checked tensor by tensor on CPUs; what a GPU's allocator adds was not measured.",
    )
    cpu = replace(cluster(), cores_per_node=2)
    assert unchecked(plan(), cpu) == ()
    assert "attention dropout" in unchecked(plan(dropout=0.1), cpu)[0]
    frozen = replace(plan(), execution=replace(plan().execution, frozen=frozenset({"embedding"})))
    assert "frozen layers" in unchecked(frozen, cpu)[0]
    sharded = llama_plan(
        hidden=256,
        heads=4,
        kv_heads=4,
        ffn=512,
        layers=2,
        vocab=512,
        length=64,
        pp=1,
        tp=1,
        dp=2,
        micro_batch=1,
        global_batch=4,
        zero_stage=3,
    )
    peer = replace(cluster(), software=Software.megatron)
    memory, *others = unchecked(sharded, peer)
    assert "memory of ZeRO-3" in memory
    assert not others
    both = replace(sharded, mesh=Mesh(1, 1, 2))
    assert "time of ZeRO-3 beside tensor parallelism" in unchecked(both, peer)[1]


def test_ranks_of_a_cpu_have_no_context_of_a_gpu() -> None:
    cpu, gpu = (MemoryModel(replace(cluster(), cores_per_node=cores)).stages(plan())[0] for cores in (2, None))
    assert cpu.weights == gpu.weights
    assert 0 < cpu.overhead < gpu.overhead
