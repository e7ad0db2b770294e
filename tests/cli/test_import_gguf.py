"""`trident import` of GGUF files: what transformers reads becomes the same run; what it leaves out is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Run, contents
from tests.helpers.gguf_files import write_gguf
from tests.helpers.hf_families import Tiny, hf_model
from trainer.checkpoint.store import find_checkpoint
from trainer.config.hf_folder import read_hf_model

SIZES = {
    "vocab_size": 67,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
MODELS = {
    "llama": Tiny("LlamaForCausalLM", SIZES),
    "qwen2": Tiny("Qwen2ForCausalLM", {**SIZES, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) / name for name in MODELS}
    for name, folder in folders.items():
        hf_model(MODELS[name]).save_pretrained(folder)
    return folders


def written_tensors(run: Path) -> dict[str, str]:
    """Hashes of the checkpoint's tensors."""
    found = find_checkpoint(run)[1].files
    return {name: facts.blake2b for name, facts in found.items() if name.startswith("tensors/")}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_becomes_the_run_that_its_safetensors_become(
    name: str, made: dict[str, Path], trident: Run, place: Path
) -> None:
    write_gguf(made[name], place / "tiny.gguf")
    answer = trident("import", "tiny.gguf", "run")
    assert answer.code == 0, answer.err
    assert "logits differ from transformers' by at most" in answer.out
    assert trident("import", str(made[name]), "other").code == 0
    assert written_tensors(place / "run") == written_tensors(place / "other")
    assert sorted(path.name for path in place.iterdir()) == ["other", "run", "tiny.gguf"]
    # What the run names is in the run.
    found = read_hf_model(place / "run" / "hugging_face", "SRC")
    assert found.model.num_key_value_heads == 2
    assert (place / "run" / "tokenizer" / "tokenizer.json").is_file()
    assert "model.path=run/hugging_face" in answer.out or f"model.path={place}/run/hugging_face" in answer.out
    words = ["model=hf", f"model.path={place}/run/hugging_face", f"checkpoint.init_from={place}/run"]
    assert trident("train", *words, "data.source=synthetic", "--dry-run").code == 0
    assert trident("export", "run", "out", "--dtype", "fp32").code == 0


def test_quantised_numbers_are_those_that_transformers_makes_of_them(
    made: dict[str, Path], trident: Run, place: Path
) -> None:
    import transformers

    (place / "folder").mkdir()
    write_gguf(made["llama"], place / "folder" / "q8.gguf", is_quantised=True)
    # The only file of its folder.
    assert trident("import", "folder", "run").code == 0
    assert trident("export", "run", "out", "--dtype", "fp32").code == 0
    loader: Any = transformers.AutoModelForCausalLM
    ids = torch.arange(32).view(2, 16)
    with torch.no_grad():
        expected = loader.from_pretrained(place / "folder", gguf_file="q8.gguf", dtype=torch.float32).eval()(ids)
        found = loader.from_pretrained(place / "out", dtype=torch.float32).eval()(ids)
        exact = loader.from_pretrained(made["llama"], dtype=torch.float32).eval()(ids)
    assert torch.equal(found.logits, expected.logits)
    assert not torch.equal(found.logits, exact.logits)


@pytest.mark.parametrize(
    ("file", "problem", "code"),
    [
        ({"extra": {"rope.scaling.type": "linear"}}, "has llama.rope.scaling.type = linear", 2),
        ({"extra": {"rope.scaling.factor": 2.0}}, "has llama.rope.scaling.factor = 2.0", 2),
        ({"extra": {"attention.sliding_window": 16}}, "has llama.attention.sliding_window = 16", 2),
        ({"extra": {"expert_count": 4}}, "has llama.expert_count = 4", 2),
        ({"added": "rope_freqs.weight"}, "has rope_freqs.weight", 2),
        ({"added": "blk.0.attn_sinks.weight"}, "has blk.0.attn_sinks.weight", 2),
        ({"added": "blk.0.attn_q.bias"}, "has blk.0.attn_q.bias", 2),
        ({"left_out": "blk.1.ffn_up.weight"}, "model.layers.1.mlp.up_proj.weight is missing", 4),
    ],
)
def test_what_transformers_leaves_out_is_refused(
    file: dict[str, Any], problem: str, code: int, made: dict[str, Path], refused: Run, place: Path
) -> None:
    write_gguf(made["llama"], place / "tiny.gguf", **file)
    before = contents(place)
    assert problem in refused("import", "tiny.gguf", "run", code=code).problems[0]
    assert contents(place) == before


def test_a_scaling_of_none_is_none_and_a_run_without_a_tokenizer(
    made: dict[str, Path], trident: Run, place: Path
) -> None:
    write_gguf(made["llama"], place / "tiny.gguf", extra={"rope.scaling.type": "none"}, merges=["e f"])
    answer = trident("import", "tiny.gguf", "run", "check=false")
    assert answer.code == 0
    assert "tiny.gguf has no tokenizer that transformers reads, so the run has none" in answer.err
    assert not (place / "run" / "tokenizer").exists()


def test_a_way_to_split_text_that_is_not_known(made: dict[str, Path], trident: Run, place: Path) -> None:
    for split, is_known in (("llama-bpe", True), ("gpt-2", True), ("poro-chat", False)):
        write_gguf(made["llama"], place / "tiny.gguf", split=split)
        answer = trident("import", "tiny.gguf", split, "check=false")
        assert answer.code == 0
        assert ("splits text as poro-chat, which transformers does not know" in answer.err) is not is_known
        assert (place / split / "tokenizer").exists() is is_known


def test_nothing_beside_the_file_is_read_and_what_a_killed_import_left_is_removed(
    made: dict[str, Path], trident: Run, place: Path
) -> None:
    write_gguf(made["llama"], place / "TINY.GGUF")
    for name in ("adapter_config.json", "tokenizer_config.json"):
        (place / name).write_text("{")
    (place / ".run.gguf" / "TINY").mkdir(parents=True)
    assert trident("import", "TINY.GGUF", "run").code == 0
    assert not (place / ".run.gguf").exists()
    assert (place / "run" / "tokenizer" / "tokenizer.json").is_file()


def test_sizes_that_transformers_takes_as_given(made: dict[str, Path], refused: Run, place: Path) -> None:
    write_gguf(made["qwen2"], place / "tiny.gguf", key_length=8)
    assert "qwen2.attention.key_length = 8, where it takes 16" in refused("import", "tiny.gguf", "run").problems[0]


def test_files_that_cannot_be_read(
    made: dict[str, Path], refused: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "bad.gguf").write_bytes(b"GGUF")
    assert "must be a GGUF file, but cannot be read" in refused("import", "bad.gguf", "run", code=4).problems[0]
    assert "must be a file that exists" in refused("import", "no.gguf", "run").problems[0]
    folder = place / "two"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(made["llama"], folder / name)
    assert "must name one GGUF file, but two holds a.gguf, b.gguf" in refused("import", "two", "run").problems[0]
    # Whatever cannot change its numbers first says who can.
    assert "a.gguf DST, and then" in refused("generate", "two/a.gguf", code=4).hints[0]
    problem = refused("train", "model=hf", "model.path=two/a.gguf").problems[0]
    assert "first: trident import two/a.gguf DST" in problem
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "the package gguf must be installed" in refused("import", "two/a.gguf", "run").problems[0]
    assert not (place / "run").exists()


def test_an_architecture_that_is_not_read(
    made: dict[str, Path], refused: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations import ggml

    write_gguf(made["llama"], place / "tiny.gguf")
    monkeypatch.delitem(ggml.GGUF_CONFIG_MAPPING, "llama")
    problem = refused("import", "tiny.gguf", "run").problems[0]
    assert "must be of an architecture that can be read from GGUF" in problem
    assert "is of llama" in problem
