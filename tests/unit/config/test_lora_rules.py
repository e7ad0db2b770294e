# ruff: noqa: E501 - messages are compared whole
"""The keys of LoRA: what is refused in which words, and what plan and theory make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.config.compose import compose, from_yaml, to_yaml
from trainer.config.plan import make_plan
from trainer.config.schema import CheckpointConfig, LoraConfig, ModelConfig, TrainConfig, TridentConfig
from trainer.config.schema import LoraTarget as Target
from trainer.config.validate import problems
from trainer.description import describe
from trainer.planner.own_memory import OwnMemory

BASE = CheckpointConfig(init_from="base")
TWO = LoraConfig(rank=2)


def said(lora: LoraConfig, checkpoint: CheckpointConfig = BASE, frozen: tuple[str, ...] = ()) -> list[str]:
    config = TridentConfig(model=ModelConfig(lora=lora), checkpoint=checkpoint, train=TrainConfig(frozen=frozen))
    return problems(config, None, 0)


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        (LoraConfig(rank=0), "model.lora.rank must be at least 1, but is 0"),
        (LoraConfig(rank=65), "model.lora.rank must be at most 64, the smaller side of the matrix q, but is 65"),
        (replace(TWO, alpha=0.0), "model.lora.alpha must be greater than 0, but is 0.0"),
        (
            LoraConfig(alpha=4.0),
            "model.lora.alpha (4.0) has no effect without model.lora.rank; set a rank, or leave it out",
        ),
        (
            LoraConfig(targets=(Target.q,)),
            "model.lora.targets ([q]) has no effect without model.lora.rank; set a rank, or leave it out",
        ),
        (
            LoraConfig(rank_stabilised=True),
            "model.lora.rank_stabilised (true) has no effect without model.lora.rank; set a rank, or leave it out",
        ),
        (replace(TWO, targets=()), "model.lora.targets must name at least one linear layer, but is empty; use all"),
        (
            replace(TWO, targets=(Target.gate,)),
            "model.lora.targets must be layers of the model, but its MLP has no gate for gate; use up",
        ),
        (
            replace(TWO, targets=(Target.gate_up,)),
            "model.lora.targets must be layers of the model, but its MLP has no gate for gate_up; use up",
        ),
        (
            replace(TWO, targets=(Target.q, Target.q)),
            "model.lora.targets must name a layer once, but q is there twice; leave one of them out",
        ),
        (
            replace(TWO, targets=(Target.all, Target.q)),
            "model.lora.targets must name a layer once, but q is in all, too; leave one of them out",
        ),
        (
            replace(TWO, targets=(Target.v, Target.qkv)),
            "model.lora.targets must name a layer once, but has qkv beside v; leave one of them out",
        ),
    ],
)
def test_problems(lora: LoraConfig, problem: str) -> None:
    assert said(lora) == [problem]


def test_adapters_need_a_base_and_freeze_it() -> None:
    assert said(TWO) == []
    assert said(TWO, CheckpointConfig(resume="runs/mine")) == []
    assert said(TWO, CheckpointConfig()) == ["model.lora.rank needs checkpoint.init_from, the model whose weights the adapters are added to, but that is null"]  # fmt: skip
    assert said(LoraConfig(), replace(BASE, with_base=True)) == ["checkpoint.with_base=true has no effect without model.lora.rank; leave it out"]  # fmt: skip
    assert said(TWO, frozen=("layers.0",)) == []
    assert said(TWO, frozen=("norms",)) == ["train.frozen has no effect on 'norms' with model.lora.rank, which leaves the model's own weights as they are; leave it out"]  # fmt: skip


def test_a_plan_trains_adapters_alone() -> None:
    words = ["model=llama_debug", "checkpoint.init_from=base", "model.lora.rank=4", "train.frozen=[layers.0]"]
    config = compose(words)
    assert from_yaml(to_yaml(config)) == config
    plan = make_plan(config, 64)
    trained = {name for name, tensor in plan.model.tensors.items() if plan.execution.trains(tensor)}
    wanted = {name for name, tensor in plan.model.tensors.items() if tensor.is_adapter}
    assert trained == {name for name in wanted if not name.startswith("blocks.0.")} != set()
    whole = make_plan(compose(words[:1]), 64)
    moments = [OwnMemory(on_cpu=True).stages(one)[0].moments for one in (plan, whole)]
    assert moments[0] == 8 * plan.trained_parameters < moments[1] / 4
    # A matrix that is not trained is multiplied with twice instead of three times.
    assert 0.66 * whole.flops_per_token < plan.flops_per_token < 0.9 * whole.flops_per_token
    assert "the model's own beside LoRA, layers.0" in " ".join(describe(plan).split())


@pytest.mark.parametrize(
    ("word", "meant"),
    [("lora_r=8", "model.lora.rank=8"), ("lora_alpha=16", "model.lora.alpha=16"), ("lora_dropout=0.1", "no dropout")],
)
def test_names_elsewhere(word: str, meant: str) -> None:
    with pytest.raises(Exception, match=meant):
        compose([word])
