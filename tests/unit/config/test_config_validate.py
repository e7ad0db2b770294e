# ruff: noqa: E501 - messages are compared whole
from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.keys import KEYS, build, flatten
from trainer.config.plan import make_plan
from trainer.config.rules_common import divisors, neighbours, use
from trainer.config.rules_ranges import MINIMA
from trainer.config.schema import (
    AdamImplementation,
    DataSource,
    DeviceKind,
    OffloadKind,
    PipelineSchedule,
    TokenizerKind,
    TridentConfig,
)
from trainer.config.validate import fill_machine, problems, validate
from trainer.errors import ConfigError

BASE: dict[str, object] = {
    "model.hidden_size": 48,
    "model.num_layers": 4,
    "model.num_attention_heads": 12,
    "batch.global_batch_size": 16,
    "name": "x",
    "run_dir": "runs/x",
}
"""A config that can run; each case below changes a few keys of it."""


def config_with(changes: Mapping[str, object]) -> TridentConfig:
    return build({**BASE, **changes})


def test_base_can_run() -> None:
    assert problems(config_with({})) == []
    validate(config_with({}), world_size=4, device_count=4)


GOOD: list[dict[str, object]] = [
    {"layout.tensor_parallel_size": 4, "layout.sequence_parallel": True},
    {"layout.tensor_parallel_size": 4, "model.num_key_value_heads": 4},
    {"model.hidden_size": 50, "model.head_dim": 4},
    {"model.position": "rope", "model.head_dim": 6},
    {"layout.pipeline_parallel_size": 4},
    {"layout.pipeline_parallel_size": 2, "layout.pipeline_schedule": "dualpipev"},
    {"layout.pipeline_parallel_size": 2, "layout.pipeline_schedule": "dualpipev", "batch.global_batch_size": 4},
    {"layout.pipeline_parallel_size": 3, "layout.stage_boundaries": [1, 3]},
    {"layout.pipeline_parallel_size": 2, "zero.offload": "cpu", "precision.dtype": "fp16"},
    {"zero.stage": 0},
    {"zero.stage": 3, "precision.dtype": "bf16", "layout.tensor_parallel_size": 2},
    {
        "zero.stage": 3,
        "zero.offload": "nvme",
        "zero.nvme_path": "/nvme",
        "zero.offload_parameters": True,
        "checkpoint.save_final": False,
    },
    {"optimizer.implementation": "deepspeed_cpu", "zero.offload": "cpu"},
    {"optimizer.implementation": "deepspeed_cpu", "runtime.device": "cpu"},
    {"optimizer.implementation": "torch", "zero.offload": "cpu"},
    {"schedule.kind": "wsd", "schedule.warmup_steps": 90},
    {"schedule.kind": "linear", "schedule.decay_steps": 500},
    {"optimizer.grad_clip": 0.0, "optimizer.weight_decay": 0.0, "optimizer.beta1": 0.0},
    {"data.source": "files", "data.files": ["a"]},
    {"data.source": "files", "data.files": ["a"], "data.validation_files": ["v"], "data.validation_fraction": 0.0, "train.eval_every": 10},
    {"data.source": "hub", "data.hub_path": "a/b", "data.hub_validation_split": "validation", "data.validation_fraction": 0.0, "train.eval_every": 10},
    {"data.source": "tokens", "data.files": ["a"], "model.vocab_size": 300, "data.token_dtype": "uint16", "data.eos_id": 299},
    {"data.source": "megatron", "data.files": ["a"], "model.vocab_size": 300, "tokenizer.kind": "pretrained", "tokenizer.path": "gpt2"},
    {"tokenizer.kind": "bytes", "model.vocab_size": 257},
    {"tokenizer.vocab_size": 400, "model.vocab_size": 500, "tokenizer.allow_unused_ids": True},
    {"model.vocab_size": 5000},
    {"train.seed": 0, "schedule.min_lr_ratio": 1.0, "launch.master_port": 65535},
]  # fmt: skip


@pytest.mark.parametrize("changes", GOOD)
def test_neighbouring_config_is_accepted(changes: dict[str, object]) -> None:
    assert problems(config_with(changes)) == []


LAYOUT_222: dict[str, object] = {
    "layout.pipeline_parallel_size": 2,
    "layout.tensor_parallel_size": 2,
    "layout.data_parallel_size": 2,
}
FACTORS = "layout.pipeline_parallel_size (2) x layout.tensor_parallel_size (2)"


@pytest.mark.parametrize(
    ("changes", "world_size", "messages"),
    [
        (LAYOUT_222, 8, []),
        (LAYOUT_222, 16, [f"{FACTORS} x layout.data_parallel_size (2) = 8 must equal the number of ranks (16); use layout.data_parallel_size=4"]),
        (LAYOUT_222, 6, [f"{FACTORS} x layout.data_parallel_size (2) = 8 must equal the number of ranks (6); start 4 ranks (layout.data_parallel_size=1) or 8 ranks (layout.data_parallel_size=2)"]),
        ({**LAYOUT_222, "layout.data_parallel_size": None}, 16, []),
        ({**LAYOUT_222, "layout.data_parallel_size": None}, 3, [f"the number of ranks (3) must be divisible by {FACTORS} = 4; start 4 ranks (layout.data_parallel_size=1)"]),
        ({"layout.data_parallel_size": None}, 3, ["batch.global_batch_size (16) must be divisible by batch.micro_batch_size (1) x layout.data_parallel_size (3) = 3; use 15 or 18"]),
        ({**LAYOUT_222, "layout.data_parallel_size": "auto"}, 16, []),
        ({**LAYOUT_222, "layout.data_parallel_size": "auto"}, 3, [f"the number of ranks (3) must be divisible by {FACTORS} = 4; start 4 ranks (layout.data_parallel_size=1)"]),
        ({**LAYOUT_222, "layout.data_parallel_size": "auto"}, 12, ["layout.data_parallel_size=auto makes 3 replicas of 12 ranks, but batch.global_batch_size (16) must be divisible by batch.micro_batch_size (1) x 3; start 8 or 16 ranks"]),
        ({"layout.data_parallel_size": "auto", "batch.micro_batch_size": 2}, 40, ["layout.data_parallel_size=auto makes 40 replicas of 40 ranks, but batch.global_batch_size (16) must be divisible by batch.micro_batch_size (2) x 40; start 8 ranks"]),
        ({"layout.data_parallel_size": "auto", "batch.micro_batch_size": 3}, 2, ["batch.global_batch_size (16) must be divisible by batch.micro_batch_size (3) x layout.data_parallel_size (2) = 6; use 12 or 18"]),
    ],
)  # fmt: skip
def test_world_size(changes: dict[str, object], world_size: int, messages: list[str]) -> None:
    assert problems(config_with(changes), world_size) == messages


NEEDS_8 = f"{FACTORS} x layout.data_parallel_size (2) = 8 ranks must have a GPU each, but this machine has 4; use a smaller layout, start it over several machines, or use runtime.device=cpu"


@pytest.mark.parametrize(
    ("changes", "world_size", "device_count", "messages"),
    [
        (LAYOUT_222, None, 4, [NEEDS_8]),
        ({**LAYOUT_222, "runtime.device": "cuda"}, None, 4, [NEEDS_8]),
        (LAYOUT_222, 8, 4, []),
        (LAYOUT_222, None, 8, []),
        (LAYOUT_222, None, 0, []),
        (LAYOUT_222, None, None, []),
        ({**LAYOUT_222, "runtime.device": "cpu"}, None, 4, []),
        ({"runtime.device": "cuda"}, None, 0, ["runtime.device=cuda needs a CUDA device, but this machine has none; use runtime.device=cpu"]),
        ({"optimizer.implementation": "deepspeed_cpu"}, None, 0, []),
    ],
)  # fmt: skip
def test_devices(
    changes: dict[str, object], world_size: int | None, device_count: int | None, messages: list[str]
) -> None:
    assert problems(config_with(changes), world_size, device_count) == messages


def test_all_problems_are_raised_at_once() -> None:
    config = config_with(
        {"layout.tensor_parallel_size": 8, "zero.stage": 5, "data.source": "hub", "optimizer.lr": -1.0}
    )
    with pytest.raises(ConfigError) as caught:
        validate(config, world_size=3)
    assert len(caught.value.problems) == 5
    assert caught.value.exit_code == 2


def test_a_size_of_zero_hides_no_problem_elsewhere() -> None:
    found = problems(config_with({"model.num_layers": 0, "data.source": "hub", "optimizer.lr": -1.0}))
    assert [line.partition(" ")[0] for line in found] == ["model.num_layers", "optimizer.lr", "data.source=hub"]


def test_helpers() -> None:
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert divisors(1) == [1]
    assert neighbours(15, 4) == [12, 16]
    assert neighbours(3, 8) == [8]
    assert use(divisors(5040), 16) == "use 8, 9, 10, 12, 14, 15, 16, 18, 20 or 21"


SMALL = st.integers(min_value=-1, max_value=9)
FUZZED = st.fixed_dictionaries(
    {},
    optional={
        **{f"model.{name}": SMALL for name in ("hidden_size", "num_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "ffn_hidden_size", "seq_length")},
        **{f"layout.{name}_parallel_size": SMALL for name in ("pipeline", "tensor", "data")},
        "layout.sequence_parallel": st.booleans(),
        "layout.pipeline_schedule": st.sampled_from(PipelineSchedule),
        "layout.stage_boundaries": st.lists(SMALL, max_size=3),
        "batch.global_batch_size": SMALL,
        "batch.micro_batch_size": SMALL,
        "zero.stage": SMALL,
        "zero.offload": st.sampled_from(OffloadKind),
        "optimizer.implementation": st.sampled_from(AdamImplementation),
        "optimizer.lr": st.floats(),
        "data.source": st.sampled_from(DataSource),
        "tokenizer.kind": st.sampled_from(TokenizerKind),
        "runtime.device": st.sampled_from(DeviceKind),
        "train.steps": SMALL,
        "schedule.warmup_steps": SMALL,
    },
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(FUZZED, st.none() | st.integers(min_value=1, max_value=9), st.none() | st.integers(min_value=0, max_value=9))
def test_every_config_gets_a_verdict_and_what_is_accepted_makes_a_plan(
    changes: dict[str, object], world_size: int | None, device_count: int | None
) -> None:
    config = config_with(changes)
    found = problems(config, world_size, device_count)
    assert len(found) == len(set(found))
    if not found:
        plan = make_plan(config, 300, world_size)
        tp, dp = plan.tensor_parallel_size, plan.data_parallel_size
        assert plan.num_micro_batches * config.batch.micro_batch_size * dp == config.batch.global_batch_size
        attention = plan.model.blocks[0].attention
        assert attention.num_heads % tp == 0
        assert attention.num_key_value_heads % tp == 0 or tp % attention.num_key_value_heads == 0
        assert attention.head_dim >= 1
        assert world_size in (None, plan.world_size)


def test_every_number_of_the_schema_has_a_range() -> None:
    from trainer.config.keys import number_or_word, optional
    from trainer.config.rules_ranges import BELOW_ONE, CLOSED, NOT_NEGATIVE, POSITIVE

    ranged = {*MINIMA, *BELOW_ONE, *CLOSED, *NOT_NEGATIVE, *POSITIVE}
    numbers = {key for key, kind in KEYS.items() if number_or_word(optional(kind)[0])[0] in (int, float)}
    numbers -= {"tokenizer.vocab_size"}  # has a rule of its own, in rules_training
    assert numbers == ranged
    assert set(flatten(TridentConfig())) == set(KEYS)


@pytest.mark.parametrize(
    ("changes", "devices", "cores", "replicas"),
    [
        ({}, 0, 2, 2),
        ({}, 0, 1, 1),
        ({}, 0, 64, 16),
        ({}, 0, 7, 4),
        ({}, 8, 2, 8),
        ({"runtime.device": "cpu"}, 8, 2, 2),
        ({"layout.pipeline_parallel_size": 2, "layout.tensor_parallel_size": 2}, 8, 64, 2),
        ({"layout.pipeline_parallel_size": 2, "layout.tensor_parallel_size": 2}, 0, 2, 1),
        ({"batch.micro_batch_size": 4}, 0, 64, 4),
        ({"batch.micro_batch_size": 3}, 0, 64, 1),
        ({"batch.global_batch_size": 12}, 8, 2, 6),
        ({"layout.pipeline_parallel_size": 2, "layout.pipeline_schedule": "dualpipev"}, 8, 2, 4),
        ({"layout.pipeline_parallel_size": 0, "batch.global_batch_size": 0}, 8, 2, 1),
    ],
)
def test_auto_fills_the_machine_and_keeps_the_global_batch(
    changes: dict[str, object], devices: int, cores: int, replicas: int
) -> None:
    config = config_with({"layout.data_parallel_size": "auto", **changes})
    assert fill_machine(config, devices, cores).layout.data_parallel_size == replicas
    for size in (3, None):
        config = config_with({**changes, "layout.data_parallel_size": size})
        assert fill_machine(config, devices, cores) == config
