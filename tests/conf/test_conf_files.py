"""Every shipped YAML file composes and can run."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path

import pytest

from trainer.config.compose import compose, conf_folder, from_yaml, options, to_yaml
from trainer.config.hf_export import express
from trainer.config.keys import GROUPS
from trainer.config.models import make_model, resolved
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.config.validate import problems

FILES = [(group, file.stem) for group in options() for file in sorted((conf_folder() / group).glob("*.yaml"))]

_SOURCE = tempfile.TemporaryDirectory()
Path(_SOURCE.name, "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
Path(_SOURCE.name, "tokenizer.json").write_text("{}")

COMPANIONS: dict[tuple[str, str], list[str]] = {
    ("model", "hf"): [f"model.path={_SOURCE.name}"],
    ("data", "chat"): ["data.files=[chats.jsonl]", "data.chat_template=plain"],
    ("data", "instructions"): ["data.files=[pairs.jsonl]"],
    ("experiment", "finetune_chat"): ["tokenizer.path=runs/pretrained/tokenizer"],
    ("data", "files"): ["data.files=[corpus/*.txt]"],
    ("data", "hub"): ["data.hub_path=owner/name"],
    ("data", "megatron"): ["data.files=[corpus_text_document]", "model.vocab_size=50257"],
    ("data", "tokens"): ["data.files=[tokens/*.bin]", "model.vocab_size=50257"],
    ("data", "synthetic"): ["model.vocab_size=2048"],
    ("tokenizer", "pretrained"): ["tokenizer.path=openai-community/gpt2"],
    ("zero", "stage3_infinity"): ["zero.nvme_path=/local_nvme", "checkpoint=none"],
    ("eval", "samples"): ["train.eval_every=10"],
}
"""What a file needs beside itself: the user's own data, or a model that is large enough for the layout."""

BIG_LAYOUTS: dict[str, str] = {
    "gpt3_13b": "tp8_pp4_sp",
    "gpt3_175b": "tp8_pp8_sp",
    "llama2_70b": "tp8_pp8_sp",
    "llama3_70b": "tp8_pp8_sp",
    "llama3_8b": "tp4_pp2_sp",
    "mistral_7b": "tp4_pp2_sp",
    "gpt2_124m": "tp2_pp2_dp2_sp",
    "gpt3_1_3b": "tp8_pp4_sp",
}


@functools.cache
def composed(group: str, name: str) -> TridentConfig:
    return compose([f"{group}={name}", *COMPANIONS.get((group, name), [])])


@pytest.mark.parametrize(("group", "name"), FILES)
def test_file_composes_validates_and_makes_a_plan(group: str, name: str) -> None:
    config = composed(group, name)
    assert problems(config) == []
    plan = make_plan(config, config.model.vocab_size or 2048)
    assert plan.num_micro_batches >= 1


@pytest.mark.parametrize(("group", "name"), FILES)
def test_file_survives_yaml(group: str, name: str) -> None:
    config = composed(group, name)
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(("group", "name"), FILES)
def test_file_says_what_it_is(group: str, name: str) -> None:
    lines = (conf_folder() / group / f"{name}.yaml").read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert re.match(r"# \w.*[.!?]|# .*: .*", first)


@pytest.mark.parametrize(("model", "layout"), BIG_LAYOUTS.items())
def test_big_models_fit_their_layout(model: str, layout: str) -> None:
    config = compose([f"model={model}", f"layout={layout}", "precision=bf16"])
    assert problems(config) == []


def test_no_file_is_outside_a_group() -> None:
    known = {f"{group}/{name}.yaml" for group, name in FILES} | {"train.yaml"}
    found = {str(path.relative_to(conf_folder())) for path in conf_folder().rglob("*.yaml")}
    assert found == known


def test_every_group_has_a_file_and_a_line_in_the_table_of_contents() -> None:
    contents = (conf_folder() / "train.yaml").read_text()
    for group in (*GROUPS, "experiment"):
        assert options()[group]
        assert re.search(rf"^  - {group}: ", contents, re.MULTILINE), group


def test_schema_defaults_and_conf_defaults_agree_outside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    shipped, bare = compose([]), TridentConfig()
    for group in set(GROUPS) - {"model"}:
        assert getattr(shipped, group) == getattr(bare, group), group


@pytest.mark.parametrize("name", [name for name in options()["model"] if name != "hf"])
def test_model_is_named_after_its_file(name: str) -> None:
    assert compose([f"model={name}"]).model.name == name


@pytest.mark.parametrize("name", options()["experiment"])
def test_experiment_is_named_after_its_file(name: str) -> None:
    config = compose([f"experiment={name}"])
    assert config.name == name
    assert Path(config.run_dir) == Path("runs") / name


@pytest.mark.parametrize(
    ("name", "world_size"),
    [("demo", 8), ("gpt2_124m_8gpu", 8), ("gpt3_1_3b_8gpu", 8), ("llama3_8b_64gpu", 64), ("llama3_70b_512gpu", 512)],
)
def test_experiment_fills_the_world_it_names(name: str, world_size: int) -> None:
    assert problems(compose([f"experiment={name}"]), world_size, device_count=8) == []


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        # hidden_size, num_layers, heads, key/value heads, ffn, seq_length, vocab_size
        ("gpt1_117m", (768, 12, 12, 12, 3072, 512, 40478)),
        ("gpt2_124m", (768, 12, 12, 12, 3072, 1024, 50257)),
        ("gpt2_355m", (1024, 24, 16, 16, 4096, 1024, 50257)),
        ("gpt2_774m", (1280, 36, 20, 20, 5120, 1024, 50257)),
        ("gpt2_1558m", (1600, 48, 25, 25, 6400, 1024, 50257)),
        ("gpt3_125m", (768, 12, 12, 12, 3072, 2048, 50257)),
        ("gpt3_350m", (1024, 24, 16, 16, 4096, 2048, 50257)),
        ("gpt3_760m", (1536, 24, 16, 16, 6144, 2048, 50257)),
        ("gpt3_1_3b", (2048, 24, 16, 16, 8192, 2048, 50257)),
        ("gpt3_2_7b", (2560, 32, 32, 32, 10240, 2048, 50257)),
        ("gpt3_6_7b", (4096, 32, 32, 32, 16384, 2048, 50257)),
        ("gpt3_13b", (5120, 40, 40, 40, 20480, 2048, 50257)),
        ("gpt3_175b", (12288, 96, 96, 96, 49152, 2048, 50257)),
        ("llama_7b", (4096, 32, 32, 32, 11008, 2048, 32000)),
        ("llama2_70b", (8192, 80, 64, 8, 28672, 4096, 32000)),
        ("llama3_8b", (4096, 32, 32, 8, 14336, 8192, 128256)),
        ("llama3_70b", (8192, 80, 64, 8, 28672, 8192, 128256)),
        ("mistral_7b", (4096, 32, 32, 8, 14336, 8192, 32000)),
    ],
)
def test_published_shapes(name: str, shape: tuple[int, ...]) -> None:
    config = compose([f"model={name}"])
    assert config.model.vocab_size is not None
    model = resolved(config.model)
    assert shape == (
        model.hidden_size,
        model.num_layers,
        model.num_attention_heads,
        model.num_key_value_heads,
        model.ffn_hidden_size,
        model.seq_length,
        model.vocab_size,
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As the makers of each model, or the safetensors of its published files, count them.
        ("gpt1_117m", 116_534_784),
        ("gpt2_124m", 124_439_808),
        ("gpt2_355m", 354_823_168),
        ("gpt2_774m", 774_030_080),
        ("gpt2_1558m", 1_557_611_200),
        ("llama_7b", 6_738_415_616),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("mistral_7b", 7_241_732_096),
        ("smollm2_135m", 134_515_008),
        ("smollm2_360m", 361_821_120),
        ("pythia_14m", 14_067_712),
        ("pythia_31m", 30_494_720),
        ("pythia_70m", 70_426_624),
        ("pythia_160m", 162_322_944),
        ("pythia_410m", 405_334_016),
        ("pythia_1b", 1_011_781_632),
        ("pythia_1_4b", 1_414_647_808),
        ("pythia_2_8b", 2_775_208_960),
        ("pythia_6_9b", 6_857_302_016),
        ("pythia_12b", 11_846_072_320),
        ("qwen3_0_6b", 596_049_920),
        ("llama3_2_1b", 1_235_814_400),
        ("olmo2_1b", 1_484_916_736),
        ("gemma3_1b", 999_885_952),
    ],
)
def test_published_parameter_counts(name: str, parameters: int) -> None:
    model = compose([f"model={name}"]).model
    assert make_model(model, model.vocab_size or 0).parameter_count == parameters


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("gpt1_117m", "OpenAIGPTLMHeadModel"),
        ("gpt2_124m", "GPT2LMHeadModel"),
        ("llama3_8b", "LlamaForCausalLM"),
        ("mistral_7b", "MistralForCausalLM"),
        ("smollm2_135m", "LlamaForCausalLM"),
        ("pythia_160m", "GPTNeoXForCausalLM"),
        ("qwen3_0_6b", "Qwen3ForCausalLM"),
        ("llama3_2_1b", "LlamaForCausalLM"),
        ("olmo2_1b", "Olmo2ForCausalLM"),
        ("gemma3_1b", "Gemma3ForCausalLM"),
    ],
)
def test_a_trained_preset_can_be_exported(name: str, architecture: str) -> None:
    model = compose([f"model={name}"]).model
    assert express(model, model.vocab_size or 0, {}).family.architecture == architecture
