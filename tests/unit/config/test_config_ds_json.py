from __future__ import annotations

import json
from typing import Any

import pytest

from trainer.config.ds_json import deepspeed_json, largest_parameter, reduce_bucket_size
from trainer.config.keys import build
from trainer.config.plan import RunPlan, make_plan
from trainer.config.validate import validate

TWO_STAGES: dict[str, object] = {"layout.pipeline_parallel_size": 2, "layout.tensor_parallel_size": 2}
NVME: dict[str, object] = {
    "zero.stage": 3,
    "zero.offload": "nvme",
    "zero.nvme_path": "/nvme",
    "zero.offload_parameters": True,
    "checkpoint.save_final": False,
}

PLANS: dict[str, dict[str, object]] = {
    "fp32 stage 0": {"zero.stage": 0},
    "fp32 stage 0 pp": {"zero.stage": 0, **TWO_STAGES},
    "fp32 stage 1": {},
    "fp32 stage 1 dp": {"layout.data_parallel_size": 2},
    "fp32 stage 1 pp": TWO_STAGES,
    "fp32 stage 2 dp": {"layout.data_parallel_size": 2, "zero.stage": 2},
    "bf16 stage 1 pp dp": {**TWO_STAGES, "precision.dtype": "bf16", "layout.data_parallel_size": 2},
    "bf16 stage 1 pp offload": {**TWO_STAGES, "precision.dtype": "bf16", "zero.offload": "cpu"},
    "fp16 stage 1 pp": {**TWO_STAGES, "precision.dtype": "fp16"},
    "fp16 stage 2": {"precision.dtype": "fp16", "zero.stage": 2},
    "bf16 stage 2 offload": {"precision.dtype": "bf16", "zero.stage": 2, "zero.offload": "cpu"},
    "bf16 stage 3": {"precision.dtype": "bf16", "zero.stage": 3},
    "bf16 stage 3 offload": {"zero.stage": 3, "zero.offload": "cpu", "zero.offload_parameters": True},
    "stage 3 infinity": NVME,
    "dualpipev": {**TWO_STAGES, "layout.pipeline_schedule": "dualpipev", "precision.dtype": "bf16"},
}


def plan_with(changes: dict[str, object]) -> RunPlan:
    config = build(
        {"model.num_layers": 4, "batch.global_batch_size": 16, "batch.micro_batch_size": 2, "name": "x", **changes}
    )
    validate(config)
    return make_plan(config, 300)


def json_with(**changes: object) -> Any:
    return deepspeed_json(plan_with({key.replace("__", "."): value for key, value in changes.items()}))


@pytest.mark.parametrize("name", PLANS)
def test_deepspeed_accepts_and_reads_what_was_meant(name: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    plan = plan_with(PLANS[name])
    text = json.dumps(deepspeed_json(plan))
    # DeepSpeedConfig checks the batch for one rank where torch.distributed is not up.
    alone = {**json.loads(text), "train_batch_size": 2 * plan.num_micro_batches}
    read = DeepSpeedConfig(alone)

    zero, config = read.zero_config, plan.config
    assert int(zero.stage) == plan.zero_stage
    assert read.gradient_accumulation_steps == plan.num_micro_batches
    assert read.train_micro_batch_size_per_gpu == 2
    assert read.grad_accum_dtype == "fp32"
    assert read.float16_config.enabled == (config.precision.dtype.value == "fp16")
    assert read.bfloat16_config.enabled == (config.precision.dtype.value == "bf16")
    assert not read.timers_config.enabled
    assert not read.wall_clock_breakdown
    assert not read.monitor_config.enabled
    assert read.steps_per_print is None
    assert read.gradient_clipping == (config.optimizer.grad_clip if plan.zero_stage else 0.0)
    assert read.zero_allow_untested_optimizer
    assert not read.zero_force_ds_cpu_optimizer
    if plan.uses_pipeline_engine:
        assert read.pipeline["pipe_partitioned"] is read.pipeline["grad_partitioned"] is False
    assert read.communication_data_type is None
    assert zero.reduce_bucket_size == reduce_bucket_size(plan)
    if plan.zero_stage > 0:
        place = "none" if zero.offload_optimizer is None else str(zero.offload_optimizer.device)
        assert place == config.zero.offload.value
    assert (zero.offload_param is not None) == config.zero.offload_parameters


@pytest.mark.parametrize("name", PLANS)
def test_same_plan_gives_the_same_text(name: str) -> None:
    assert json.dumps(deepspeed_json(plan_with(PLANS[name]))) == json.dumps(deepspeed_json(plan_with(PLANS[name])))


def test_batch_numbers_multiply() -> None:
    result = json_with(layout__data_parallel_size=2)
    assert result["train_batch_size"] == 16
    assert result["train_batch_size"] == (
        result["train_micro_batch_size_per_gpu"] * result["gradient_accumulation_steps"] * 2
    )


def test_clipping_is_left_to_our_engine_without_zero() -> None:
    assert json_with(zero__stage=0)["gradient_clipping"] == 0.0
    assert json_with(optimizer__grad_clip=0.7, layout__data_parallel_size=2)["gradient_clipping"] == 0.7


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, 0),
        ({"zero.stage": 2}, 0),
        (TWO_STAGES, 0),
        ({"zero.stage": 0}, 0),
        ({"zero.stage": 3}, 3),
        ({"layout.data_parallel_size": 2}, 1),
        ({"layout.data_parallel_size": 2, "zero.stage": 2}, 2),
        ({"precision.dtype": "bf16"}, 1),
        ({"precision.dtype": "fp16", "zero.stage": 2}, 2),
        ({"zero.offload": "cpu"}, 1),
    ],
)
def test_one_replica_in_fp32_shards_nothing(changes: dict[str, object], stage: int) -> None:
    plan = plan_with(changes)
    zero = deepspeed_json(plan)["zero_optimization"]
    assert isinstance(zero, dict)
    assert (plan.zero_stage, zero["stage"]) == (stage, stage)


def test_pipeline_travels_whole_tensors_and_does_not_overlap() -> None:
    piped = deepspeed_json(plan_with({**TWO_STAGES, "layout.data_parallel_size": 2}))
    assert piped["pipeline"] == {
        "pipe_partitioned": False,
        "grad_partitioned": False,
        "use_reentrant": False,
        "activation_checkpoint_interval": 0,
    }
    zero = piped["zero_optimization"]
    assert isinstance(zero, dict)
    assert zero["overlap_comm"] is False
    assert "pipeline" not in json_with()
    assert json_with(layout__data_parallel_size=2)["zero_optimization"]["overlap_comm"] is True
    off = json_with(layout__data_parallel_size=2, zero__overlap_comm=False)
    assert off["zero_optimization"]["overlap_comm"] is False


def test_precision() -> None:
    assert {"bf16", "fp16"}.isdisjoint(json_with())
    assert json_with(precision__dtype="bf16")["bf16"] == {"enabled": True, "check_grad_overflow": False}
    half = json_with(precision__dtype="fp16", precision__initial_scale_power=8, precision__loss_scale_window=50)["fp16"]
    assert half == {"enabled": True, "loss_scale": 0, "initial_scale_power": 8, "loss_scale_window": 50}


def test_offload_places() -> None:
    zero = json_with(zero__offload="cpu")["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu"}
    assert "offload_param" not in zero
    nvme = deepspeed_json(plan_with(NVME))["zero_optimization"]
    assert isinstance(nvme, dict)
    assert nvme["offload_optimizer"] == {"device": "nvme", "nvme_path": "/nvme"}
    assert nvme["offload_param"]["buffer_size"] == largest_parameter(plan_with(NVME))


def test_buckets_follow_the_model_unless_said() -> None:
    wide: dict[str, object] = {"layout.data_parallel_size": 2, "model.hidden_size": 1024, "model.num_layers": 12}
    matrices = 12 * 12 * 1024**2 + 2 * plan_with(wide).execution.padded(300) * 1024
    assert reduce_bucket_size(plan_with(wide)) == matrices // 16 // 2 * 2
    assert reduce_bucket_size(plan_with({"layout.data_parallel_size": 2})) == 1_000_000
    assert reduce_bucket_size(plan_with({**wide, "model.num_layers": 96})) == 50_000_000
    assert reduce_bucket_size(plan_with({**wide, "zero.reduce_bucket_size": 12_345})) == 12_345


def test_stage_3_keeps_two_blocks_gathered_and_steps_in_parts() -> None:
    wide: dict[str, object] = {
        "layout.data_parallel_size": 2,
        "zero.stage": 3,
        "model.hidden_size": 1024,
        "model.num_layers": 12,
    }
    zero: Any = deepspeed_json(plan_with(wide))["zero_optimization"]
    block = 12 * 1024**2
    assert zero["stage3_prefetch_bucket_size"] == block
    assert zero["stage3_max_live_parameters"] == 2 * block
    assert zero["stage3_max_reuse_distance"] == 0
    assert 12 * block // 8 <= zero["sub_group_size"] < 13 * block // 8


@pytest.mark.parametrize(
    ("changes", "elements"),
    [
        ({"model.hidden_size": 64}, 304 * 64),
        ({"model.hidden_size": 128}, 512 * 128),
        ({"model.hidden_size": 128, "model.activation": "swiglu"}, 1024 * 128),
        ({"model.hidden_size": 128, "layout.tensor_parallel_size": 4}, 512 * 128 // 4),
        ({"model.hidden_size": 64, "model.head_dim": 64, "model.ffn_hidden_size": 64}, 768 * 64),
    ],
)
def test_largest_parameter(changes: dict[str, object], elements: int) -> None:
    assert largest_parameter(plan_with(changes)) == elements
