from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.helpers.models import drawn_gpt
from tests.helpers.thread_group import run_ranks
from tests.helpers.tiny_models import TINY, TINY_LLAMA
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    BatchConfig,
    Dtype,
    LayoutConfig,
    LoraConfig,
    LoraTarget,
    ModelConfig,
    PipelineSchedule,
    PrecisionConfig,
    RecomputeKind,
    TridentConfig,
    Wiring,
)
from trainer.micro_batch import MicroBatch
from trainer.pipeline.partition import stages
from trainer.pipeline.traffic import hidden_bytes, node_traffic, split_tensor_groups, tensor_link_bytes
from trainer.topology.groups import Group

MICRO_BATCH = 2
MODELS = {
    "gpt2": TINY,
    "llama": TINY_LLAMA,
    "parallel": replace(TINY, wiring=Wiring.parallel, num_key_value_heads=1),
    "two_norms": replace(TINY, wiring=Wiring.parallel_two_norms),
    "adapters": replace(TINY, num_key_value_heads=1, lora=LoraConfig(rank=3)),
    "parallel_adapters": replace(TINY, wiring=Wiring.parallel, lora=LoraConfig(rank=2, targets=(LoraTarget.qkv,))),
}


@dataclass(frozen=True)
class Counted(Group):
    """A group that notes what a rank sends to its neighbour in a ring, apart from vectors."""

    group: Group
    sent: list[float] = field(default_factory=list)

    def _note(self, tensor: torch.Tensor, times: float) -> None:
        if tensor.ndim > 1:
            self.sent.append(times * tensor.numel() * tensor.element_size())

    def all_reduce(self, tensor: torch.Tensor, op: str = "sum") -> torch.Tensor:
        self._note(tensor, 2 * (self.size - 1) / self.size)
        return self.group.all_reduce(tensor, op)

    def all_gather(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        self._note(tensor, self.size - 1)
        return self.group.all_gather(tensor, dim)

    def reduce_scatter(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        self._note(tensor, (self.size - 1) / self.size)
        return self.group.reduce_scatter(tensor, dim)


def plan_of(model: ModelConfig, pp: int, dp: int, tp: int, sharded: bool = False, batch: int = 8) -> RunPlan:
    layout = LayoutConfig(
        pipeline_parallel_size=pp, tensor_parallel_size=tp, data_parallel_size=dp, sequence_parallel=sharded
    )
    sizes = BatchConfig(global_batch_size=batch, micro_batch_size=MICRO_BATCH)
    return make_plan(TridentConfig(model=model, layout=layout, batch=sizes), vocab_size=29)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recompute", RecomputeKind)
@pytest.mark.parametrize(("size", "sharded"), [(2, False), (2, True), (4, True)])
def test_a_micro_batch_sends_what_is_said(model: str, recompute: RecomputeKind, size: int, sharded: bool) -> None:
    plan = plan_of(replace(MODELS[model], recompute=recompute), 1, 1, size, sharded, batch=MICRO_BATCH)

    def body(group: Group) -> float:
        counted = Counted(group.rank, group.size, group)
        gpt = drawn_gpt(plan.config.model, plan.model.vocab_size, 9, counted, sharded)
        text = torch.randint(0, 29, (MICRO_BATCH, plan.execution.seq_length + 1))
        gpt(MicroBatch.of(text[:, :-1].contiguous(), text[:, 1:].contiguous())).backward()
        return sum(counted.sent)

    [stage] = stages(plan)
    assert run_ranks(size, body) == pytest.approx([tensor_link_bytes(plan, stage)] * size)


def test_a_group_of_one_sends_nothing() -> None:
    plan = plan_of(TINY, 1, 1, 1)
    assert tensor_link_bytes(plan, stages(plan)[0]) == 0


def test_half_precision_halves_hidden_states() -> None:
    plan = plan_of(TINY, 1, 1, 2)
    half = replace(plan, config=replace(plan.config, precision=PrecisionConfig(dtype=Dtype.bf16)))
    assert (
        hidden_bytes(half) * 2
        == hidden_bytes(plan)
        == plan.execution.seq_length * MICRO_BATCH * plan.model.hidden_size * 4
    )


def test_tensor_ranks_inside_a_node_send_nothing_out_of_it() -> None:
    plan = plan_of(TINY, 2, 2, 2)
    nodes = ["a"] * 4 + ["b"] * 4
    traffic = node_traffic(plan, nodes)
    assert split_tensor_groups(plan, nodes) == []
    assert traffic.tensor_bytes == 0
    # Two replicas x two tensor ranks hand each micro-batch's hidden states on; the gradients go the other way.
    assert traffic.pipeline_bytes == 4 * hidden_bytes(plan) * plan.num_micro_batches
    assert node_traffic(plan, ["a"] * 8).pipeline_bytes == 0


def test_sharded_hidden_states_are_handed_on_as_shards() -> None:
    nodes = ["a"] * 4 + ["b"] * 4
    whole, sharded = (node_traffic(plan_of(TINY, 2, 2, 2, kind), nodes) for kind in (False, True))
    assert sharded.pipeline_bytes * 2 == whole.pipeline_bytes


def test_tensor_ranks_over_two_nodes() -> None:
    plan = plan_of(TINY, 1, 1, 4)
    nodes = ["a", "a", "b", "b"]
    assert split_tensor_groups(plan, nodes) == [[0, 1, 2, 3]]
    # Of a ring over two nodes, one link leaves each.
    assert node_traffic(plan, nodes).tensor_bytes == tensor_link_bytes(plan, stages(plan)[0])
    # Ranks dealt out in turn: every link leaves.
    assert node_traffic(plan, ["a", "b", "a", "b"]).tensor_bytes == 2 * tensor_link_bytes(plan, stages(plan)[0])


def test_the_busiest_node_counts() -> None:
    plan = plan_of(replace(TINY, num_layers=3), 3, 1, 2)
    traffic = node_traffic(plan, ["a", "a", "b", "b", "c", "c"])
    # The middle one sends both ways.
    assert traffic.pipeline_bytes == 4 * hidden_bytes(plan) * plan.num_micro_batches


def test_a_folded_pipeline_turns_round_inside_its_last_rank() -> None:
    plan = plan_of(replace(TINY, num_layers=4), 2, 1, 1, batch=16)
    layout = replace(plan.config.layout, pipeline_schedule=PipelineSchedule.dualpipev)
    folded = replace(plan, config=replace(plan.config, layout=layout))
    # There and back again, and so do the gradients.
    assert node_traffic(folded, "ab").pipeline_bytes == 2 * node_traffic(plan, "ab").pipeline_bytes
