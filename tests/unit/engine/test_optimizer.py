from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from tests.helpers.models import drawn_gpt
from trainer.config.models import make_model
from trainer.config.schema import (
    AdamImplementation,
    ModelConfig,
    OffloadKind,
    OptimizerConfig,
    RuntimeConfig,
    TridentConfig,
    ZeroConfig,
)
from trainer.config.step_rates import stepping_of
from trainer.engine.adam import adam_implementation, check_compiler
from trainer.engine.lion import Lion
from trainer.engine.optimizer import build_optimizer, set_learning_rate, step_groups
from trainer.errors import ConfigError
from trainer.model.gpt import GPT
from trainer.spec.stepping import Stepping

AUTO, TORCH, CPU = AdamImplementation.auto, AdamImplementation.torch, AdamImplementation.deepspeed_cpu
MODEL = ModelConfig(hidden_size=16, num_layers=1, num_attention_heads=2, seq_length=8)


def config_of(
    implementation: AdamImplementation = AUTO, offload: OffloadKind = OffloadKind.none, stage: int = 1
) -> TridentConfig:
    optimizer = OptimizerConfig(
        lr=0.5, beta1=0.8, beta2=0.7, eps=1e-3, weight_decay=0.25, implementation=implementation
    )
    return TridentConfig(model=MODEL, optimizer=optimizer, zero=ZeroConfig(stage=stage, offload=offload))


def check(config: TridentConfig) -> None:
    check_compiler(config.optimizer, config.zero, config.runtime)


def build(parameters: Iterable[torch.nn.Parameter], config: TridentConfig) -> torch.optim.Optimizer:
    stepping = stepping_of(config.optimizer, make_model(config.model, 50))
    return build_optimizer(parameters, stepping, config.optimizer, config.zero)


def gpt() -> GPT:
    return drawn_gpt(MODEL, 50, 1)


def test_matrices_and_embeddings_decay_and_vectors_do_not() -> None:
    model = gpt()
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, free = step_groups(model.parameters(), Stepping(), 0.25)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.25, 0.0)
    assert isinstance(decayed["params"], list)
    assert isinstance(free["params"], list)
    matrices, vectors = {names[p] for p in decayed["params"]}, {names[p] for p in free["params"]}
    assert matrices | vectors == set(names.values())
    assert {"embedding.weight", "position.weight", "blocks.0.attention.qkv.weight"} <= matrices
    assert {"blocks.0.attention.qkv.bias", "final_norm.weight", "final_norm.bias"} <= vectors
    assert not matrices & vectors


def test_an_empty_group_is_left_out_and_frozen_parameters_have_none() -> None:
    model = gpt()
    matrix, vector, frozen = model.embedding.weight, model.get_parameter("final_norm.bias"), model.position.weight
    assert frozen is not None
    frozen.requires_grad_(False)
    assert [group["params"] for group in step_groups([matrix, frozen], Stepping(), 0.1)] == [[matrix]]
    assert [group["params"] for group in step_groups([vector], Stepping(), 0.1)] == [[vector]]
    assert step_groups([frozen], Stepping(), 0.1) == []


def test_each_group_has_its_factor_of_the_learning_rate() -> None:
    config = config_of()
    chosen = replace(config.optimizer, rates=("matrices:0.5", "norms:3", "layers.0.mlp:2"), mup_base_width=4)
    model = gpt()
    optimizer = build(model.parameters(), replace(config, optimizer=chosen))
    set_learning_rate(optimizer.param_groups, 1e-2)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] / 1e-2 for name, parameter in model.named_parameters()}
    assert {name: found[name] for name in ("embedding.weight", "final_norm.bias")} == {
        "embedding.weight": 1.0,
        "final_norm.bias": 3.0,
    }
    # The width is 16, so that muP quarters the rates of matrices; the later word counts where two name a tensor.
    assert found["blocks.0.attention.qkv.weight"] == 0.125
    assert found["blocks.0.mlp.up.weight"] == 0.5
    assert found["blocks.0.mlp.up.bias"] == 2.0
    assert [group["weight_decay"] > 0 for group in optimizer.param_groups] == [True] * 3 + [False] * 3
    # A step takes rate x decay away: of a matrix as much as at the base's width, but for the factors of `rates`.
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    taken = {name: found[name] * decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert (taken["blocks.0.attention.qkv.weight"], taken["blocks.0.mlp.up.weight"]) == (0.5 * 0.25, 2 * 0.25)
    assert (taken["embedding.weight"], taken["blocks.0.mlp.up.bias"]) == (0.25, 0.0)


def test_lion_steps_by_signs() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.0]))
    lion = Lion([{"params": [weight], "weight_decay": 0.1}], lr=0.5, betas=(0.9, 0.99))
    for gradient in ([1.0, 1.0, 0.0], [-0.05, 1.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        lion.step()
    # The second step's first gradient is smaller than what is left of the first one: 0.9 * 0.01 + 0.1 * -0.05 > 0.
    assert torch.allclose(weight.detach(), torch.tensor([(0.95 - 0.5) * 0.95 - 0.5, (-1.9 - 0.5) * 0.95 - 0.5, 0.0]))
    assert torch.allclose(lion.state[weight]["exp_avg"], torch.tensor([0.0094, 0.0199, 0.0]))
    weight.grad = None
    before = weight.detach().clone()
    lion.step()
    assert torch.equal(weight, before)


def test_the_optimizer_has_the_numbers_of_the_config() -> None:
    optimizer = build(gpt().parameters(), config_of())
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, free = optimizer.param_groups
    for group in (decayed, free):
        assert (group["lr"], group["betas"], group["eps"]) == (0.5, (0.8, 0.7), 1e-3)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.25, 0.0)


@pytest.mark.parametrize(
    ("implementation", "offload", "expected"),
    [
        (AUTO, OffloadKind.none, TORCH),
        (AUTO, OffloadKind.cpu, CPU),
        (AUTO, OffloadKind.nvme, CPU),
        (TORCH, OffloadKind.cpu, TORCH),
        (CPU, OffloadKind.none, CPU),
    ],
)
def test_the_kernel_follows_the_optimizer_state_unless_it_is_chosen(
    implementation: AdamImplementation, offload: OffloadKind, expected: AdamImplementation
) -> None:
    config = config_of(implementation, offload)
    assert adam_implementation(config.optimizer, config.zero) is expected


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("g++",), "but g++ is not on PATH"),
        (("ninja",), "but ninja is not on PATH"),
        (("g++", "ninja"), "g++ and ninja are not"),
    ],
)
def test_a_missing_compiler_is_said_before_any_rank_starts(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool in missing else f"/bin/{tool}")
    with pytest.raises(ConfigError) as caught:
        check(config_of(offload=OffloadKind.cpu))
    assert words in str(caught.value)
    assert "optimizer.implementation" in str(caught.value)
    assert "optimizer.implementation=torch" in caught.value.hints[0]


def test_compiled_blocks_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    monkeypatch.setenv("CXX", "clang++-99")
    with pytest.raises(ConfigError, match=r"runtime\.compile=true needs a C\+\+ compiler, but clang\+\+-99 is not"):
        check(TridentConfig(runtime=RuntimeConfig(compile=True)))


def test_liger_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TridentConfig(runtime=RuntimeConfig(liger=True))
    check(config)
    monkeypatch.setattr("trainer.engine.adam.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"runtime\.liger=true needs the package liger-kernel, but it is not"
    ) as caught:
        check(config)
    assert "trident-trainer[liger]" in caught.value.hints[0]


def test_no_compiler_is_needed_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None)
    check(config_of())
    check(config_of(TORCH, OffloadKind.cpu))
    monkeypatch.setattr("shutil.which", lambda tool: f"/bin/{tool}")
    check(config_of(offload=OffloadKind.cpu))


def test_the_processor_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import cpuinfo

    answer, asked = cpuinfo.get_cpu_info(), []

    def get_cpu_info() -> object:
        asked.append(1)
        return answer

    monkeypatch.setattr(cpuinfo, "get_cpu_info", get_cpu_info)
    for _ in range(2):
        build(gpt().parameters(), config_of(CPU))
    assert asked == [1]


def test_kernels_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trainer.engine.adam; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
