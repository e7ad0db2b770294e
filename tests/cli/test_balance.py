from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.cli.conftest import Run
from trainer import balance
from trainer.balance import report
from trainer.config.compose import compose
from trainer.config.plan import RunPlan, make_plan
from trainer.pipeline.partition import balanced_bounds, boundaries, stage_bounds
from trainer.spec.model import LayerKind

WORDS = ("model=gpt_debug", "data=synthetic", "model.vocab_size=64", "runtime.device=cpu")


def plan_of(*words: str) -> RunPlan:
    return make_plan(compose([*WORDS, "model.num_layers=8", *words]), 64)


def times_of(plan: RunPlan, block: float, head: float) -> Mapping[str, tuple[float, float]]:
    """Blocks take `block`, the head takes `head` seconds, a third of it in forward; everything else nothing."""
    by_kind = {LayerKind.block: block, LayerKind.head: head}
    whole = {layer.name: by_kind.get(layer.kind, 0.0) for layer in plan.model.layers}
    return {name: (total / 3, 2 * total / 3) for name, total in whole.items()}


def test_it_measures_this_machine(trident: Run) -> None:
    answer = trident("balance", *WORDS, "layout=pp2")
    assert (answer.code, answer.err) == (0, "")
    for word in ("embedding", "position", "block (4, each)", "final_norm", "head with loss", "by counted work [2]"):
        assert word in answer.out
    assert answer.out.splitlines()[-1].startswith(("the stages are balanced", "layout.stage_boundaries=["))


def test_the_vocabulary_may_come_from_the_data(trident: Run) -> None:
    answer = trident("balance", "model=gpt_debug", "layout=pp2", "runtime.device=cpu")
    assert answer.code == 0
    assert "head with loss" in answer.out


def test_without_a_pipeline_there_is_nothing_to_balance(refused: Run) -> None:
    assert refused("balance", *WORDS).problems == [
        "layout.pipeline_parallel_size must be greater than 1 for stages to be balanced, but is 1; for example "
        "layout=pp2"
    ]


def test_a_wrong_config_is_refused(refused: Run) -> None:
    assert (
        "model.num_layers (4) must be at least"
        in refused("balance", *WORDS, "layout.pipeline_parallel_size=8").problems[0]
    )


def test_a_head_that_takes_long_gets_fewer_blocks_beside_it() -> None:
    plan = plan_of("layout=pp2")
    text = report(plan, times_of(plan, block=0.010, head=0.040))
    assert "by measured time [6]" in text
    assert text.splitlines()[-1].startswith("layout.stage_boundaries=[6] makes the slowest stage 1.")
    assert "60.00  60.00" in text


def test_what_it_recommends_is_what_a_config_takes() -> None:
    plan = plan_of("layout=pp4")
    bounds = balanced_bounds(plan, [sum(one) for one in times_of(plan, 0.01, 0.03).values()])
    inner = boundaries(plan, bounds)
    words = str(inner).replace(" ", "")
    assert stage_bounds(plan_of("layout=pp4", f"layout.stage_boundaries={words}")) == bounds


def test_stages_that_are_balanced_are_left_alone() -> None:
    plan = plan_of("layout=pp2", "layout.stage_boundaries=[4]")
    text = report(plan, times_of(plan, block=0.01, head=0.0001))
    assert "as configured [4]" in text
    assert text.endswith("the stages are balanced as they are")


def test_a_gain_within_the_noise_is_not_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("layout=pp2")
    times = times_of(plan, block=0.010, head=0.040)
    monkeypatch.setattr(balance, "WORTH_IT", 5.0)
    assert report(plan, times).endswith("the stages are balanced as they are")


def test_dualpipev_has_two_stages_a_rank() -> None:
    plan = plan_of("layout=pp2_dualpipev", "batch.global_batch_size=8")
    assert len(boundaries(plan, balanced_bounds(plan, [sum(one) for one in times_of(plan, 0.01, 0.01).values()]))) == 3
