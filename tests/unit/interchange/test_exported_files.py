"""Files that are published in other ways than transformers writes them today, and what an export writes."""

from __future__ import annotations

import json
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.hf_families import LENGTH, TINY, Tiny, hf_model
from trainer.checkpoint.copied_out import write_weights
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.kept_tokenizer import saved_config
from trainer.checkpoint.store import find_checkpoint
from trainer.config.hf_export import exported_config, express
from trainer.config.hf_folder import find_source, read_hf_model, source_name
from trainer.config.schema import ActivationKind, DataConfig, DataSource, ModelConfig, NormKind, PositionKind
from trainer.data.tokenizer import train_bpe
from trainer.errors import ConfigError
from trainer.exporting import export_verb
from trainer.importing import import_verb
from trainer.interchange.weight_files import WeightFiles
from trainer.interchange.weight_index import INDEX, SINGLE
from trainer.model_card import model_card

SMALL = {"vocab_size": 67, "num_hidden_layers": 2}
LLAMA = Tiny("LlamaForCausalLM", {**TINY["llama"].arguments, **SMALL})
TIED = Tiny("LlamaForCausalLM", {**LLAMA.arguments, "tie_word_embeddings": True})
GPT2 = Tiny("GPT2LMHeadModel", {**TINY["gpt2"].arguments, "vocab_size": 67})
NEOX = Tiny("GPTNeoXForCausalLM", {**TINY["gpt_neox"].arguments, **SMALL})


def saved(tiny: Tiny, folder: Path) -> Path:
    hf_model(tiny).save_pretrained(folder)
    return folder


def imported(source: Path, run: Path) -> dict[str, torch.Tensor]:
    """Our tensors of a source."""
    assert import_verb([str(source), str(run), "check=false"]) == 0
    from trainer.checkpoint.fragments import TensorFolder

    path, manifest = find_checkpoint(run)
    tensors = TensorFolder(path, manifest.files)
    return {name: tensors.read("weight", name) for name in tensors.names()}


def rewritten(source: Path, target: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    target.mkdir()
    found = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**found, **config}))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / SINGLE)
    return target


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_old_gpt2_files_lack_the_prefix_and_hold_masks(tmp_path: Path) -> None:
    source = saved(GPT2, tmp_path / "new")
    found = load_file(source / SINGLE)
    old = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    old |= {f"h.{layer}.attn.bias": torch.ones(1, 1, LENGTH, LENGTH) for layer in range(2)}
    first = imported(source, tmp_path / "a")
    assert_same(imported(rewritten(source, tmp_path / "old", old), tmp_path / "b"), first)


def test_a_head_that_is_the_embedding_may_be_written_twice(tmp_path: Path) -> None:
    source = saved(TIED, tmp_path / "once")
    found = load_file(source / SINGLE)
    assert "lm_head.weight" not in found
    twice = {**found, "lm_head.weight": found["model.embed_tokens.weight"].clone()}
    first = imported(source, tmp_path / "a")
    assert_same(imported(rewritten(source, tmp_path / "twice", twice), tmp_path / "b"), first)


def test_both_names_of_the_head_of_neox_are_read(tmp_path: Path) -> None:
    source = saved(NEOX, tmp_path / "new")
    found = load_file(source / SINGLE)
    (name,) = [one for one in found if one in ("embed_out.weight", "lm_head.weight")]
    other = {"embed_out.weight": "lm_head.weight", "lm_head.weight": "embed_out.weight"}[name]
    renamed = {other if one == name else one: tensor for one, tensor in found.items()}
    first = imported(source, tmp_path / "a")
    assert_same(imported(rewritten(source, tmp_path / "other", renamed), tmp_path / "b"), first)


def test_shards_are_cut_by_size_and_listed(tmp_path: Path) -> None:
    source = saved(LLAMA, tmp_path / "source")
    imported(source, tmp_path / "run")
    path, manifest = find_checkpoint(tmp_path / "run")
    said = express(read_hf_model(source, "SRC").model, manifest.vocab_size, {})
    folder = tmp_path / "out"
    folder.mkdir()
    write_weights(TensorFolder(path, manifest.files), said, "float32", folder, shard_bytes=12000)
    index = json.loads((folder / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0].startswith("model-00001-of-")
    expected = load_file(source / SINGLE)
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in expected.values())
    read = WeightFiles(folder)
    assert_same({name: read.read(name) for name in read.names()}, expected)
    assert all(sum(4 * t.numel() for t in load_file(folder / file).values()) <= 12000 for file in files)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_rounded_and_compared_as_rounded(dtype: str, tmp_path: Path) -> None:
    source = saved(LLAMA, tmp_path / "source")
    imported(source, tmp_path / "run")
    assert export_verb([str(tmp_path / "run"), str(tmp_path / "out")], dtype) == 0
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    expected = {name: tensor.to(kind) for name, tensor in load_file(source / SINGLE).items()}
    assert_same(load_file(tmp_path / "out" / SINGLE), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(kind).removeprefix("torch.")


def test_small_files_leave_as_they_came(tmp_path: Path) -> None:
    source = saved(LLAMA, tmp_path / "source")
    train_bpe(["some text"], 300).save(source)
    config = json.loads((source / "config.json").read_text())
    config |= {"eos_token_id": [2, 3], "vocab_size": 300, "torch_dtype": "bfloat16", "use_cache": False}
    config.pop("dtype")
    (source / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / SINGLE)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(300, 32)
    save_file(tensors, source / SINGLE)
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 3], "temperature": 0.6}')
    (source / "chat_template.jinja").write_text("{{ x }}")
    imported(source, tmp_path / "run")
    assert export_verb([str(tmp_path / "run"), str(tmp_path / "out"), "check=false"], None) == 0
    out = tmp_path / "out"
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    written = json.loads((out / "config.json").read_text())
    assert {key: written[key] for key in config} == config
    assert written["dtype"] == "bfloat16"
    assert next(iter(load_file(out / SINGLE).values())).dtype == torch.bfloat16
    assert "LlamaForCausalLM" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelConfig(norm=NormKind.rmsnorm), "the nearest is GPT2LMHeadModel, which has no model.norm=rmsnorm"),
        (ModelConfig(position=PositionKind.none), "which has no model.position=none"),
        (ModelConfig(bias=False), "which has no model.bias=false"),
        (ModelConfig(head_bias=True), "which has no model.head_bias=true"),
    ],
)
def test_a_model_that_no_family_can_say_is_refused_by_the_nearest(model: ModelConfig, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        express(model, 67, {})
    assert words in caught.value.problems[0]
    assert len(caught.value.problems) == 1


def test_a_config_says_both_spellings_and_the_runs_own_end_of_text() -> None:
    model = ModelConfig(
        position=PositionKind.rope, norm=NormKind.rmsnorm, bias=False, activation=ActivationKind.swiglu, rope_theta=7.0
    )
    said = express(model, 67, {})
    config = exported_config(said, "bfloat16", {}, 5)
    assert config["rope_theta"] == 7.0
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 7.0}
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, 5, None)


def test_a_source_that_was_changed_keeps_its_ids_only() -> None:
    kept = {"architectures": ["LlamaForCausalLM"], "vocab_size": 67, "hidden_size": 32, "eos_token_id": [1, 2]}
    model = ModelConfig(position=PositionKind.rope, norm=NormKind.rmsnorm, bias=False, activation=ActivationKind.swiglu)
    config = exported_config(express(model, 67, kept), "float32", kept, None)
    assert config["hidden_size"] == 64
    assert config["eos_token_id"] == [1, 2]


def test_the_card_of_an_import_names_no_folder_and_no_training(tmp_path: Path) -> None:
    source = saved(LLAMA, tmp_path / "source")
    imported(source, tmp_path / "run")
    path, manifest = find_checkpoint(tmp_path / "run")
    config = saved_config(path / "config.yaml")
    said = express(config.model, manifest.vocab_size, {})
    card = model_card(config, manifest, said, "float32", "logits were not compared")
    assert "| Began with | source |" in card
    assert str(tmp_path) not in card
    assert not [row for row in ("Batch", "Learning rate", "Layout") if f"| {row} |" in card]
    trained = replace(
        config,
        data=DataConfig(DataSource.files, files=("/home/me/corpus/*.txt",)),
        checkpoint=replace(config.checkpoint, init_from="/home/me/runs/first/checkpoints/step_7"),
    )
    card = model_card(trained, replace(manifest, step=3), said, "float32", "")
    assert "| Began with | first (step_7) |" in card
    assert "| Data | files *.txt |" in card
    assert "| Batch |" in card
    assert "/home/me" not in card


@pytest.mark.parametrize(
    ("there", "fetched"),
    [
        (["model-1.safetensors", "model-2.safetensors", "pytorch_model.bin"], ["model*.safetensors"]),
        (["odd.safetensors", "pytorch_model.bin"], ["model*.safetensors", "*.safetensors"]),
        (["pytorch_model.bin"], ["model*.safetensors", "*.safetensors", "pytorch_model*.bin"]),
    ],
)
def test_weights_that_are_on_the_hub_twice_are_fetched_once(
    there: list[str], fetched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(_name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        for name in [one for one in there if any(fnmatchcase(one, pattern) for pattern in allow_patterns)]:
            (tmp_path / name).write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_source("owner/name", "SRC") == tmp_path
    assert [pattern for pattern in asked if pattern.endswith((".safetensors", ".bin"))] == fetched
    assert source_name("owner/name", tmp_path) == "name"
    assert source_name(".", tmp_path) == tmp_path.name
