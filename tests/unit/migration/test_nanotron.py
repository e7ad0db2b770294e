from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.helpers.foreign_files import DEEPSPEED, NANOTRON
from tests.unit.migration.conftest import Described, Migrate, lost, numbers
from trainer.config.schema import ActivationKind, DataSource, Dtype, OffloadKind, ScheduleKind
from trainer.errors import ConfigError
from trainer.migration.draft import Why


def changed(path: str, value: object) -> dict[str, Any]:
    """Return nanotron's config with another value."""
    tree: dict[str, Any] = copy.deepcopy(NANOTRON)
    *owners, leaf = path.split(".")
    inner = tree
    for owner in owners:
        inner = inner[owner]
    inner[leaf] = value
    return tree


def test_the_tiny_llama_is_the_same_model_and_batch(migrated: Migrate) -> None:
    done = migrated(tiny__yaml=NANOTRON)
    assert all(one.agrees for one in done.compared)
    # 256 x 16 shared, and for each of 2 layers 4 x 16 x 16, 3 x 16 x 64 and 2 norms, and a last norm.
    assert numbers(done)["parameters"] == (256 * 16 + 2 * (4 * 256 + 3 * 1024 + 32) + 16,) * 2
    assert numbers(done)["tokens a step"] == (2 * 2 * 256, 2 * 2 * 256)
    config = done.config
    assert (config.layout.pipeline_parallel_size, config.layout.tensor_parallel_size) == (2, 2)
    assert config.layout.data_parallel_size == 2
    assert config.layout.sequence_parallel
    assert (config.data.source, config.data.hub_path) == (DataSource.hub, "stas/openwebtext-10k")
    assert config.tokenizer.path == "gpt2"
    assert config.precision.dtype is Dtype.bf16
    assert (config.schedule.kind, config.schedule.warmup_steps, config.schedule.decay_steps) == (
        ScheduleKind.cosine,
        2,
        15,
    )
    assert config.schedule.min_lr_ratio == pytest.approx(1 / 30)
    assert config.model.init_std == 0.025
    assert config.train.seed == 42
    assert lost(done, Why.unknown) == set()


def test_folders_of_tokens_are_a_blend(described: Described) -> None:
    dataset = {"dataset_folder": ["/t/web", "/t/code"], "dataset_weights": [0.8, 0.2], "token_size_in_bytes": 2}
    stages = [
        {"name": "one", "start_training_step": 1, "data": {"dataset": dataset, "seed": 1}},
        {"name": "two", "start_training_step": 9, "data": {"dataset": dataset, "seed": 1}},
    ]
    done = described(n__yaml=changed("data_stages", stages))
    assert done.config.data.source is DataSource.tokens
    assert done.config.data.blend.plain_weights() == {"web": 0.8, "code": 0.2}
    assert "data_stages" in lost(done, Why.by_hand)


def test_qwen_has_biases_and_a_window(described: Described) -> None:
    tree = changed("model.model_config.attention_bias", True)
    tree["model"]["model_config"] |= {"is_qwen2_config": True, "sliding_window_size": 20, "num_key_value_heads": 2}
    del tree["model"]["model_config"]["is_llama_config"]
    done = described(n__yaml=tree)
    assert all(one.agrees for one in done.compared)
    assert done.config.model.qkv_bias
    assert done.config.model.sliding_window == 20


def test_a_late_decay_is_wsd(described: Described) -> None:
    done = described(n__yaml=changed("optimizer.learning_rate_scheduler.lr_decay_starting_step", 10))
    assert (done.config.schedule.kind, done.config.schedule.decay_steps) == (ScheduleKind.wsd, 13)
    note = done.draft.entries["schedule.decay_steps"].note
    assert "there it is cosine" in note
    assert "there it ends at step 23" in note


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("model.model_config.moe_config", {"num_experts": 8}, "model.model_config.moe_config.num_experts"),
        ("model.model_config.is_mamba_config", True, "model.model_config.is_mamba_config"),
        ("model.model_config.no_rope_layer", 4, "model.model_config.no_rope_layer"),
    ],
)
def test_a_model_that_cannot_be_had_is_not_compared(path: str, value: object, name: str, described: Described) -> None:
    done = described(n__yaml=changed(path, value))
    assert name in lost(done, Why.unsupported)
    assert done.compared[0].there is None


def test_an_activation_that_is_none_is_refused(described: Described) -> None:
    with pytest.raises(ConfigError, match=r"model.model_config.hidden_act must be silu, gelu or relu, but is mish"):
        described(n__yaml=changed("model.model_config.hidden_act", "mish"))
    done = described(n__yaml=changed("model.model_config.hidden_act", "gelu"))
    assert done.config.model.activation is ActivationKind.gelu
    assert all(one.agrees for one in done.compared)


def test_a_deepspeed_config_says_how_and_not_what(migrated: Migrate) -> None:
    done = migrated("layout.data_parallel_size=8", ds__json=DEEPSPEED)
    assert [(one.name, one.there, one.here) for one in done.compared] == [("sequences a step", 256, 256)]
    config = done.config
    assert (config.batch.global_batch_size, config.batch.micro_batch_size) == (256, 8)
    assert (config.zero.stage, config.zero.offload) == (2, OffloadKind.cpu)
    assert (config.optimizer.lr, config.optimizer.beta1, config.optimizer.beta2) == (3e-5, 0.8, 0.999)
    assert (config.schedule.kind, config.schedule.warmup_steps, config.train.steps) == (ScheduleKind.linear, 500, 10000)
    assert config.schedule.min_lr_ratio == 0
    assert config.precision.dtype is Dtype.fp16
    assert lost(done, Why.unknown) == set()


def test_values_that_another_trainer_fills_in_are_left_out(described: Described) -> None:
    values = {**DEEPSPEED, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}
    done = described(ds__json=values)
    assert {"train_batch_size", "train_micro_batch_size_per_gpu"} <= lost(done, Why.by_hand)
    assert done.compared[0].there is None


def test_a_micro_batch_that_the_files_do_not_say_is_told(described: Described) -> None:
    values = {key: value for key, value in DEEPSPEED.items() if key != "train_micro_batch_size_per_gpu"}
    done = described(ds__json=values)
    assert (done.config.batch.global_batch_size, done.config.batch.micro_batch_size) == (256, 1)
    assert done.draft.entries["batch.micro_batch_size"].note.startswith("the files do not say it")


def test_nvme_and_parameters_are_offloaded(described: Described) -> None:
    zero = {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/local"},
        "offload_param": {"device": "nvme"},
    }
    done = described(
        ds__json={**DEEPSPEED, "zero_optimization": zero, "bf16": {"enabled": True}, "fp16": {"enabled": False}}
    )
    assert (done.config.zero.stage, done.config.zero.offload) == (3, OffloadKind.nvme)
    assert done.config.zero.offload_parameters
    assert done.config.zero.nvme_path == "/local"
    assert done.config.precision.dtype is Dtype.bf16
