# ruff: noqa: E501 - messages are compared whole
"""The keys of optimizers: what is refused in which words, and the groups that a plan makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.config.compose import compose, from_yaml, to_yaml
from trainer.config.plan import make_plan
from trainer.config.schema import (
    AdamImplementation,
    CheckpointConfig,
    LoraConfig,
    ModelConfig,
    OffloadKind,
    OptimizerConfig,
    StepRule,
    TrainConfig,
    TridentConfig,
    ZeroConfig,
)
from trainer.config.validate import problems
from trainer.planner.own_memory import OwnMemory

LION, MUON = OptimizerConfig(kind=StepRule.lion), OptimizerConfig(kind=StepRule.muon)
NVME = TridentConfig(
    zero=ZeroConfig(stage=3, offload=OffloadKind.nvme, nvme_path="/nvme"), checkpoint=CheckpointConfig(save_final=False)
)
LORA = TridentConfig(model=ModelConfig(lora=LoraConfig(rank=2)), checkpoint=CheckpointConfig(init_from="base"))


def rated(*entries: str) -> OptimizerConfig:
    return OptimizerConfig(rates=entries)


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        (replace(LION, eps=1e-6), "optimizer.eps has no effect with optimizer.kind=lion; leave it out"),
        (
            replace(LION, implementation=AdamImplementation.deepspeed_cpu),
            "optimizer.implementation=deepspeed_cpu computes AdamW alone, but optimizer.kind is lion; use optimizer.implementation=auto",
        ),
        (
            rated("embedding"),
            "optimizer.rates must hold PART:FACTOR with a factor above 0, but has 'embedding'",
        ),
        (rated("norms:0"), "optimizer.rates must hold PART:FACTOR with a factor above 0, but has 'norms:0'"),
        (rated("norms:nan"), "optimizer.rates must hold PART:FACTOR with a factor above 0, but has 'norms:nan'"),
        (
            rated("head:2"),
            "optimizer.rates must name parts of the model, but 'head' is the embedding, model.tied_embeddings being true; use embedding",
        ),
        (
            rated("matrics:2"),
            "optimizer.rates must name parts of the model, but 'matrics' names none; did you mean 'matrices'?",
        ),
        (
            rated("zzz:2"),
            "optimizer.rates must name parts of the model, but 'zzz' names none; use embedding, position, layers, final_norm, matrices, norms, biases, attention or mlp",
        ),
        (
            rated("norms:2", "biases:3", "norms:1"),
            "optimizer.rates has no effect on 'norms', which later parts name again; leave it out",
        ),
        (
            OptimizerConfig(momentum=0.9),
            "optimizer.momentum has no effect with optimizer.kind=adamw; leave it out",
        ),
        (
            replace(MUON, mup_base_width=32),
            "optimizer.mup_base_width scales rates of AdamW and Lion, but optimizer.kind is muon, whose updates have the same root mean square at every width; use optimizer.rates, or leave it out",
        ),
        (replace(LION, mup_base_width=0), "optimizer.mup_base_width must be at least 1, but is 0"),
    ],
)
def test_what_is_refused(optimizer: OptimizerConfig, problem: str) -> None:
    assert problem in problems(TridentConfig(optimizer=optimizer), None, 0)


def test_what_is_refused_beside_other_keys() -> None:
    assert problems(replace(NVME, optimizer=LION), None, 0) == [
        "zero.offload=nvme needs optimizer.kind=adamw, whose kernel steps state on a disk, but it is lion; use zero.offload=cpu, or optimizer.kind=adamw"
    ]
    assert problems(replace(LORA, optimizer=OptimizerConfig(mup_base_width=64)), None, 0) == [
        "optimizer.mup_base_width cannot be used with model.lora.rank: the inputs of an adapter's second matrix do not grow with the width; use optimizer.rates, or leave it out"
    ]
    assert problems(replace(LORA, optimizer=MUON), None, 0) == [
        "optimizer.kind=muon cannot be used with model.lora.rank: an adapter is the product of two matrices, which no longer has equal singular values when each of them has; use optimizer.kind=adamw"
    ]
    offloaded = TridentConfig(zero=ZeroConfig(offload=OffloadKind.cpu), optimizer=MUON)
    assert problems(offloaded, None, 0) == [
        "optimizer.kind=muon multiplies whole matrices on the device and needs zero.offload=none, but it is cpu; use zero.offload=none, or optimizer.kind=adamw"
    ]
    frozen = TridentConfig(train=TrainConfig(frozen=("norms",)), optimizer=rated("norms:2"))
    assert problems(frozen, None, 0) == [
        "optimizer.rates has no effect on 'norms', which train.frozen or LoRA freezes; leave it out"
    ]


def test_what_is_accepted() -> None:
    for words in (
        ["optimizer=lion", "zero=stage2_offload", "layout=dp2"],
        ["optimizer=muon", "zero=stage3", "layout=tp2_dp2", "optimizer.rates=[matrices:2]"],
        ["optimizer.rates=[embedding:0.1,matrices:0.5,layers.0.mlp:2]", "optimizer.mup_base_width=32"],
    ):
        config = compose(words)
        assert problems(config, None, 0) == []
        assert from_yaml(to_yaml(config)) == config


def test_moments_are_planned_by_the_rule() -> None:
    model = ModelConfig(hidden_size=64, num_layers=2, num_attention_heads=4, seq_length=32)
    found = {}
    for rule in StepRule:
        config = TridentConfig(model=model, optimizer=OptimizerConfig(kind=rule))
        (stage,) = OwnMemory(on_cpu=True).stages(make_plan(config, 300))
        found[rule] = stage.moments
    assert found[StepRule.adamw] == 2 * found[StepRule.lion] > 0
    matrices = 2 * 12 * 64**2
    assert found[StepRule.muon] == found[StepRule.adamw] - 4 * matrices
