from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from tests.helpers.predictions import prediction, stage
from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema_cluster import ClusterConfig
from trainer.description import describe, plan_record
from trainer.errors import ConfigError
from trainer.machine import MemoryLimit
from trainer.planner import foresee as foresee_module
from trainer.planner.cluster import Cluster
from trainer.planner.foresee import LIBRARIES, account_of_killed, foresee, line_of, record_of
from trainer.planner.post_mortem import Foreseen, Held, PostMortem
from trainer.planner.prediction import GIB
from trainer.planner.record import PREDICTION, expected_of

WORDS = "data=synthetic runtime.device=cpu model=gpt_debug model.vocab_size=512"
LIMIT_S = 0.05


def plan_of(words: str = "") -> RunPlan:
    return make_plan(compose([*WORDS.split(), *words.split()]), 512)


def test_a_run_is_predicted_and_stored() -> None:
    plan = plan_of("layout=pp2")
    record = json.loads(json.dumps(plan_record(plan), allow_nan=False))[PREDICTION]
    assert len(record["stages"]) == 2
    expected = expected_of(record)
    assert expected.step_ms > 0
    assert expected.peak_memory_gib == max(one["peak_gib"] for one in record["stages"])
    assert record["confidence"]["reason"]


def test_a_plan_shows_what_is_predicted() -> None:
    lines = describe(plan_of()).splitlines()
    [at] = [index for index, line in enumerate(lines) if line.startswith("predict ")]
    text = " ".join(" ".join(lines[at:]).split())
    assert "GiB on the fullest rank (+-" in text
    assert " a step (+-" in text
    assert max(map(len, lines)) <= 80


def test_the_line_says_which_rank_is_fullest_and_that_it_does_not_fit() -> None:
    found = prediction(stage(weights=GIB), stage(weights=GIB, gradients=GIB), step_s=0.25, device_gib=2)
    assert line_of(Foreseen(found, None)) == (
        "predict 3.00 of 2.0 GiB on the fullest rank (pipeline rank 1), which does not fit (+-5%), "
        "250 ms a step (+-10%)"
    )
    assert "12.5 s a step" in line_of(Foreseen(prediction(step_s=12.5), None))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConfigError("this machine's GPU is not in the table\nand more"), "this machine's GPU is not in the table"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (KeyError(), "KeyError: KeyError"),
    ],
)
def test_a_run_that_cannot_be_predicted_goes_on_and_one_line_says_why(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(plan: RunPlan, cluster: Cluster, exact: bool) -> None:
        raise error

    monkeypatch.setattr(foresee_module, "predict", fails)
    found = foresee(plan_of())
    assert (found.prediction, found.problem) == (None, why)
    assert line_of(found) == f"predict nothing: {why}"
    assert record_of(found) is None
    lines, hints = account_of_killed(plan_of(), 0)
    assert lines == ("rank 0 ran out of memory (the kernel killed it)", f"  nothing was predicted: {why}")
    assert hints == []


def test_a_cluster_that_is_none_is_no_end_of_a_run() -> None:
    plan = plan_of()
    plan = replace(plan, config=replace(plan.config, cluster=ClusterConfig(device="no such device")))
    found = foresee(plan)
    assert found.prediction is None
    assert "no such device" in found.problem


@pytest.mark.parametrize(
    "words",
    [
        "layout=tp2_pp2",
        "model.num_layers=64 layout.pipeline_parallel_size=64 batch.global_batch_size=512 batch.micro_batch_size=1",
        "model=llama2_70b cluster=h100 layout.pipeline_parallel_size=16 layout.tensor_parallel_size=8 "
        "batch.global_batch_size=2048 batch.micro_batch_size=1 precision=bf16 runtime.device=auto",
    ],
)
def test_it_costs_a_start_next_to_nothing(words: str) -> None:
    seconds = []
    for _ in range(5):
        # Each time a new one, as at a start: nothing is kept from plan to plan.
        plan = plan_of(words)
        began = time.process_time()
        assert foresee(plan).prediction is not None
        seconds.append(time.process_time() - began)
    assert min(seconds) < LIMIT_S


def test_what_a_killed_rank_was_predicted_to_need() -> None:
    lines, _ = account_of_killed(plan_of(), 0)
    assert lines[0] == "rank 0 ran out of memory (the kernel killed it); it was predicted to hold, in MiB:"
    assert any(line.startswith("  weights") for line in lines)


def test_ranks_that_were_killed_share_the_limit_with_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []

    def looked(*arguments: object) -> PostMortem:
        limit = arguments[6]
        assert limit is None or isinstance(limit, int)
        limits.append(limit)
        return PostMortem(())

    monkeypatch.setattr(foresee_module, "post_mortem", looked)
    plan = plan_of("layout=dp2")
    for found in (None, MemoryLimit(2 * GIB, None), MemoryLimit(1, None)):
        monkeypatch.setattr(foresee_module, "memory_limit", lambda found=found: found)
        account_of_killed(plan, 0)
    assert limits == [None, GIB - round(LIBRARIES.value), 0]
    held = Held(total=1)
    monkeypatch.setattr(foresee_module, "memory_limit", lambda: MemoryLimit(2 * GIB, None))
    foresee_module.explain(plan, 0, "x", held)
    assert limits[3] is None, "the rank itself has looked"


def test_an_account_that_fails_is_no_second_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(foresee_module, "post_mortem", fails)
    assert account_of_killed(plan_of(), 0) == (("nothing is predicted: ValueError: a bug",), ())
