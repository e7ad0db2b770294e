from __future__ import annotations

import re

import pytest

from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import DeviceKind, OffloadKind
from trainer.description import describe
from trainer.planner.own_memory import OwnMemory
from trainer.planner.own_states import States
from trainer.planner.zero_choice import cheaper_choice

LARGE = (
    "model=gpt_debug model.hidden_size=1024 model.num_layers=12 model.num_attention_heads=16 model.seq_length=32 "
    "model.vocab_size=8192 batch.micro_batch_size=1 batch.global_batch_size=4"
)
SMALL = "model=gpt_debug batch.micro_batch_size=1 batch.global_batch_size=4"


def plan_of(words: str) -> RunPlan:
    return make_plan(compose(["data=synthetic", "runtime.device=cpu", *words.split()]), 8192)


def states(plan: RunPlan, stage: int, offload: OffloadKind = OffloadKind.none) -> States:
    return OwnMemory(on_cpu=plan.device is DeviceKind.cpu).states(plan, stage, offload)[0]


def total(plan: RunPlan, stage: int, offload: OffloadKind = OffloadKind.none) -> int:
    found = states(plan, stage, offload)
    return found.held + found.buckets + found.gathered


@pytest.mark.parametrize("replicas", [2, 4])
def test_each_stage_takes_less_than_the_one_below(replicas: int) -> None:
    # Several micro-batches: with a single one, stage 1 as stage 2 reduces gradients while they come.
    words = f"{LARGE} layout.data_parallel_size={replicas} batch.global_batch_size={2 * replicas}"
    totals = [total(plan_of(words), stage) for stage in range(4)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4


def test_states_are_those_of_the_paper() -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 precision=bf16 zero.stage=2")
    count, found, whole = plan.model.parameter_count, states(plan, 2), states(plan, 3)
    assert (found.weights, found.master, found.moments) == (2 * count, 4 * (count // 2), 8 * (count // 2))
    # Norms and biases are kept whole besides.
    assert 2 * (count // 2) < whole.weights < 2.02 * (count // 2)
    assert whole.moments == found.moments
    assert 0 < whole.gathered < whole.weights
    assert found.gathered == 0


def test_the_bf16_optimizer_of_stage_1_keeps_all_gradients_twice() -> None:
    words = f"{LARGE} layout.data_parallel_size=2 precision=bf16 zero.stage=1 batch.global_batch_size=2"
    plan = plan_of(f"{words} runtime.device=cuda")
    assert plan.num_micro_batches == 1
    assert states(plan, 1).gradients == (4 + 2) * plan.model.parameter_count
    assert states(plan, 1, OffloadKind.cpu).gradients < states(plan, 1).gradients


def test_offload_takes_states_off_another_device_but_not_off_the_same_one() -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage=2 zero.offload=cpu")
    assert states(plan, 2, OffloadKind.cpu).moments == states(plan, 2).moments
    assert total(plan, 2, OffloadKind.cpu) > total(plan, 2)
    assert states(plan, 2, OffloadKind.cpu).host == 0
    gpu = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage=2 zero.offload=cpu runtime.device=cuda")
    moved = states(gpu, 2, OffloadKind.cpu)
    assert moved.moments == 0
    assert moved.host > 16 * (gpu.model.parameter_count // 2)
    assert total(gpu, 2, OffloadKind.cpu) < total(gpu, 2)


def test_gradients_of_stage_1_wait_for_the_last_micro_batch_before_they_are_offloaded() -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage=1 zero.offload=cpu runtime.device=cuda")
    assert plan.num_micro_batches == 2
    more = states(plan, 1, OffloadKind.cpu).buckets - states(plan, 2, OffloadKind.cpu).buckets
    assert more > 3 * plan.model.parameter_count


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_choice_that_pays_is_not_remarked_upon(stage: int) -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage={stage}")
    assert cheaper_choice(plan) is None
    assert "memory" not in describe(plan)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"{SMALL} layout.data_parallel_size=2 zero.stage=3", "ZeRO-3 takes .* MiB a rank .*, more than ZeRO-1 with"),
        (f"{LARGE} zero.stage=1 zero.offload=cpu", r"ZeRO-1 \+ cpu offload takes .*, more than ZeRO-0 with"),
        (
            f"{SMALL} zero.stage=2 zero.offload=cpu precision=bf16",
            r"ZeRO-2 \+ cpu offload takes .*, more than ZeRO-2 with",
        ),
    ],
)
def test_a_choice_that_costs_more_than_a_lower_one_is_told_in_the_plan(words: str, told: str) -> None:
    lines = " ".join(describe(plan_of(words)).split())
    assert re.search(f"memory {told}", lines), lines
