from __future__ import annotations

import re

import pytest

from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import OffloadKind
from trainer.description import describe
from trainer.planner.zero_theory import cheaper_choice, zero_bytes

LARGE = (
    "model=gpt_debug model.hidden_size=1024 model.num_layers=12 model.num_attention_heads=16 model.seq_length=32 "
    "model.vocab_size=8192 batch.micro_batch_size=1 batch.global_batch_size=4"
)
SMALL = "model=gpt_debug batch.micro_batch_size=1 batch.global_batch_size=4"


def plan_of(words: str) -> RunPlan:
    return make_plan(compose(["data=synthetic", "runtime.device=cpu", *words.split()]), 8192)


@pytest.mark.parametrize("replicas", [2, 4])
def test_each_stage_takes_less_than_the_one_below(replicas: int) -> None:
    # Several micro-batches: with a single one, stage 1 as stage 2 reduces gradients while they come.
    words = f"{LARGE} layout.data_parallel_size={replicas} batch.global_batch_size={2 * replicas}"
    totals = [zero_bytes(plan_of(f"{words} zero.stage={stage}")).total for stage in range(4)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4


def test_states_are_those_of_the_paper() -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 precision=bf16 zero.stage=2")
    count, found = plan.model.parameter_count, zero_bytes(plan)
    assert (found.weights, found.master, found.moments) == (2 * count, 4 * (count // 2), 8 * (count // 2))
    whole = zero_bytes(plan, stage=3)
    assert (whole.weights, whole.moments) == (2 * (count // 2), found.moments)
    assert 0 < whole.gathered < whole.weights
    assert found.gathered == 0


def test_the_bf16_optimizer_of_stage_1_keeps_all_gradients_in_fp32() -> None:
    words = f"{LARGE} layout.data_parallel_size=2 precision=bf16 zero.stage=1 batch.global_batch_size=2"
    plan = plan_of(f"{words} runtime.device=cuda")
    assert plan.num_micro_batches == 1
    assert zero_bytes(plan).gradients == 4 * plan.model.parameter_count
    assert zero_bytes(plan, offload=OffloadKind.cpu).gradients < zero_bytes(plan).gradients


def test_offload_takes_states_off_another_device_but_not_off_the_same_one() -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage=2 zero.offload=cpu")
    here, without = zero_bytes(plan), zero_bytes(plan, offload=OffloadKind.none)
    assert here.moments == without.moments
    assert here.total > without.total
    gpu = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage=2 zero.offload=cpu runtime.device=cuda")
    assert zero_bytes(gpu).moments == 0
    assert zero_bytes(gpu).total < without.total


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_to_the_same_memory_keeps_the_gradients_that_a_rank_steps_once_more(stage: int) -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage={stage}")
    more = zero_bytes(plan, offload=OffloadKind.cpu).gradients - zero_bytes(plan).gradients
    assert more == 4 * (plan.model.parameter_count // 2)


def test_gradients_of_stage_1_wait_for_the_last_micro_batch_before_they_are_offloaded() -> None:
    plan = plan_of(f"{LARGE} layout.data_parallel_size=2 zero.stage=1 zero.offload=cpu runtime.device=cuda")
    assert plan.num_micro_batches == 2
    assert zero_bytes(plan).gradients == 4 * plan.model.parameter_count
    assert zero_bytes(plan, stage=2).gradients < zero_bytes(plan).gradients


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
            r"ZeRO-2 \+ cpu offload takes .*, more than ZeRO-1 with",
        ),
    ],
)
def test_a_choice_that_costs_more_than_a_lower_one_is_told_in_the_plan(words: str, told: str) -> None:
    lines = " ".join(describe(plan_of(words)).split())
    assert re.search(f"memory {told}", lines), lines
