from __future__ import annotations

import math

import pytest

from tests.helpers.foreign_files import (
    NEOX_20B,
    NEOX_125M,
    NEOX_LOCAL,
    PYTHIA,
    PYTHIA_NOT_EMBEDDED,
    neox_text,
    pythia,
)
from tests.unit.migration.conftest import Described, Migrate, lost, numbers
from trainer.config.compose import compose
from trainer.config.models import make_model
from trainer.config.schema import ActivationKind, Dtype, NormKind, PositionKind, Wiring
from trainer.errors import ConfigError
from trainer.migration.draft import Why


def test_the_public_125m_is_the_same_model_and_batch(migrated: Migrate) -> None:
    done = migrated("layout.data_parallel_size=8", m125__yml=neox_text(NEOX_125M), local__yml=neox_text(NEOX_LOCAL))
    assert all(one.agrees for one in done.compared)
    # 124M with tied embeddings and learned positions; here two embeddings and none: 85,056,000 + 2 x 50,257 x 768.
    assert numbers(done)["parameters"] == (162_250_752, 162_250_752)
    assert numbers(done)["tokens a step"] == (8 * 4 * 2048, 8 * 4 * 2048)
    config = done.config
    assert (config.schedule.warmup_steps, config.schedule.decay_steps, config.train.steps) == (3200, 320000, 320000)
    assert config.schedule.min_lr_ratio == 0.1
    assert config.model.init_std == pytest.approx(math.sqrt(2 / (5 * 768)), rel=1e-9)
    assert (config.data.validation_fraction, config.data.test_fraction) == (0.03, 0.001)
    assert config.precision.dtype is Dtype.fp16
    assert (config.checkpoint.every, config.checkpoint.keep, config.checkpoint.keep_every) == (10000, 4, 0)
    assert lost(done, Why.unsupported) == {"output_layer_init_method"}
    assert lost(done, Why.unknown) == set()
    assert lost(done, Why.environment) == {"distributed_backend", "log_dir"}


def test_the_public_20b_has_its_published_size(migrated: Migrate) -> None:
    done = migrated("layout.data_parallel_size=12", b20__yml=neox_text(NEOX_20B))
    assert all(one.agrees for one in done.compared)
    config = done.config
    # GPT-NeoX-20B, arXiv 2204.06745: 20,554,567,680 with a vocabulary of 50,432, the padding of 50,277 on two ranks.
    assert make_model(config.model, 50432).parameter_count == 20_554_567_680
    assert "20,554,567,680" in next(one.note for one in done.compared if one.name == "parameters")
    # 96 GPUs, 3.15M tokens a step: section 3.1 of the paper.
    assert numbers(done)["tokens a step"] == (3_145_728, 3_145_728)
    assert config.model.wiring is Wiring.parallel_two_norms
    assert (config.model.position, config.model.rope_dims) == (PositionKind.rope, 24)
    assert config.model.activation is ActivationKind.gelu_tanh
    assert (config.layout.pipeline_parallel_size, config.layout.tensor_parallel_size) == (4, 2)


@pytest.mark.parametrize("size", PYTHIA)
def test_pythia_is_the_model_that_ships(size: str, described: Described) -> None:
    done = described(p__yml=neox_text({**pythia(size), "num_nodes": 4, "num_gpus": 8}))
    assert all(one.agrees for one in done.compared)
    assert numbers(done)["parameters without vocabulary"] == (PYTHIA_NOT_EMBEDDED[size],) * 2
    # Published: 1,024 sequences of 2,048 tokens.
    assert numbers(done)["tokens a step"] == (2_097_152, 2_097_152)
    shipped = compose([f"model=pythia_{size}"]).model
    assert make_model(done.config.model, 50304).parameter_count == make_model(shipped, 50304).parameter_count
    assert done.config.data.files == ("/pile/pile_text_document",)
    assert done.config.data.validation_files == ()


def test_a_batch_of_unknown_replicas_is_not_compared(described: Described) -> None:
    done = described(m__yml=neox_text(NEOX_125M))
    one = next(one for one in done.compared if one.name == "tokens a step")
    assert (one.there, one.here) == (None, 8192)
    assert "number of GPUs" in one.note
    assert "layout.data_parallel_size=N" in done.draft.entries["batch.global_batch_size"].note


def test_a_whole_batch_needs_no_replicas(described: Described) -> None:
    done = described(m__yml=neox_text({**NEOX_125M, "train_batch_size": 256}))
    assert numbers(done)["tokens a step"] == (256 * 2048, 256 * 2048)
    assert done.config.layout.data_parallel_size is None


def test_a_gate_takes_two_thirds_of_the_width(described: Described) -> None:
    llama = {"intermediate_size": 32768, "activation": "swiglu", "norm": "rmsnorm", "mlp_multiple_of": 256}
    llama |= {"hidden_size": 4096, "num_layers": 32, "num_attention_heads": 32, "num_kv_heads": 8}
    llama |= {"use_bias_in_attn_linear": False, "use_bias_in_mlp": False, "bias_gelu_fusion": True}
    done = described(m__yml=neox_text({**NEOX_125M, **llama}))
    # The configs of LLaMA 2 there say 32768 for 11008.
    assert done.config.model.ffn_hidden_size == 11008
    assert done.config.model.activation is ActivationKind.swiglu
    assert done.config.model.norm is NormKind.rmsnorm
    assert done.config.model.norm_eps == 1e-8
    assert all(one.agrees for one in done.compared)


@pytest.mark.parametrize(
    ("more", "more_parameters"),
    [
        ({"gpt_j_residual": True, "gpt_j_tied": True}, 12 * 2 * 768),
        ({"pos_emb": "learned", "max_position_embeddings": 4096}, 2048 * 768),
        ({"pos_emb": "learned", "opt_pos_emb_offset": 2}, 0),
        ({"pos_emb": "alibi"}, 0),
        ({"norm": "non_parametric_layernorm"}, 0),
        ({"activation": "geglu"}, 0),
        ({"activation": "reglu", "expansion_factor": 3.0}, 0),
        ({"use_bias_in_mlp": False}, 0),
        ({"num_kv_heads": 4, "no_weight_tying": False}, 0),
        ({"sliding_window_width": 512}, 0),
    ],
)
def test_options_of_the_model_count_alike(more: dict[str, object], more_parameters: int, described: Described) -> None:
    done = described(m__yml=neox_text({**NEOX_125M, **more}))
    one = done.compared[0]
    assert one.agrees
    assert one.there is not None
    assert one.here is not None
    assert one.there - one.here == more_parameters


@pytest.mark.parametrize(
    "more",
    [
        {"norm": "scalenorm"},
        {"pos_emb": "sinusoidal"},
        {"activation": "mish"},
        {"moe_num_experts": 8},
        {"use_qk_layernorm": True},
        {"attention_config": [[["local", "global"], 6]]},
    ],
)
def test_a_model_that_cannot_be_had_is_not_compared(more: dict[str, object], described: Described) -> None:
    done = described(m__yml=neox_text({**NEOX_125M, **more}))
    (name,) = more
    assert name in lost(done, Why.unsupported)
    assert done.compared[0].there is None
    assert f"{name} is not supported" in done.compared[0].note


def test_weights_and_paths_are_a_blend(migrated: Migrate) -> None:
    data = {"train_data_paths": ["/a/web_text_document", "/b/code_text_document", "/c/code_text_document"]}
    done = migrated(m__yml=neox_text({**NEOX_125M, **data, "train_data_weights": [0.5, 0.3, 0.2]}))
    blend = done.config.data.blend
    assert blend.plain_weights() == {"web": 0.5, "code": 0.3, "code_2": 0.2}
    assert blend.sources[2].keys == (("files", ("/c/code_text_document",)),)


def test_files_that_say_a_thing_twice_are_refused(migrated: Migrate) -> None:
    with pytest.raises(ConfigError, match=r"b.yml:3: num_layers must be said once, but a.yml:5 says it, too") as caught:
        migrated(a__yml=neox_text(NEOX_125M), b__yml=neox_text({"num_layers": 24}))
    assert caught.value.exit_code == 2


def test_no_iterations_leave_the_schedule_to_the_epochs(migrated: Migrate) -> None:
    values = {key: value for key, value in NEOX_125M.items() if key not in ("train_iters", "lr_decay_iters")}
    done = migrated(m__yml=neox_text({**values, "train_epochs": 2}))
    assert done.config.train.epochs == 2


@pytest.mark.parametrize(
    ("more", "dtype"),
    [
        ({"fp16": {"enabled": True, "type": "bfloat16"}}, Dtype.bf16),
        ({"fp16": {"enabled": False}, "bf16": {"enabled": True}}, Dtype.bf16),
        ({"fp16": {"enabled": False}, "precision": "bfloat16"}, Dtype.bf16),
        ({"fp16": {"fp16": True, "enabled": True}}, Dtype.fp16),
        ({"fp16": {"enabled": False}}, Dtype.fp32),
    ],
)
def test_precision_is_said_in_several_ways(more: dict[str, object], dtype: Dtype, described: Described) -> None:
    assert described(m__yml=neox_text({**NEOX_125M, **more})).config.precision.dtype is dtype
