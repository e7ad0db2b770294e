"""Bad words and bad folders of `trident import` and `trident export`, and what they leave: nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Run, contents
from tests.helpers.hf_families import TINY, Tiny, hf_model
from trainer.files import own_folder
from trainer.interchange.linked_weights import LinkedWeights

LLAMA = Tiny("LlamaForCausalLM", {**TINY["llama"].arguments, "vocab_size": 67})
TIED = Tiny("LlamaForCausalLM", {**LLAMA.arguments, "tie_word_embeddings": True})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, tiny in {"llama": LLAMA, "tied": TIED}.items():
        folders[name] = tmp_path_factory.mktemp(name) / name
        hf_model(tiny).save_pretrained(folders[name])
    return folders


def copied(folder: Path, place: Path) -> Path:
    target = place / "src"
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def configured(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


def in_shards(folder: Path, weight_map: dict[str, str] | None = None, missing: str = "") -> None:
    found = load_file(folder / "model.safetensors")
    names = sorted(found)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: found[name] for name in held}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = weight_map or {name: file for file, held in parts.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    if missing:
        (folder / missing).unlink()


K = "model.layers.1.self_attn.k_proj.weight"
FAULTS: dict[str, tuple[str, Callable[[Path], object], int, str]] = {
    "no weights": ("llama", lambda f: (f / "model.safetensors").unlink(), 4, "must hold weights"),
    "missing shard": (
        "llama",
        lambda f: in_shards(f, missing="b.safetensors"),
        4,
        "b.safetensors must exist, since model.safetensors.index.json names it, but is missing",
    ),
    "index that lies": (
        "llama",
        lambda f: in_shards(f, {"model.norm.weight": "a.safetensors", K: "b.safetensors", "odd": "a.safetensors"}),
        4,
        "as its index says, but does not",
    ),
    "index outside": ("llama", lambda f: in_shards(f, {K: "../b.safetensors"}), 4, "must name files beside it"),
    "torn file": (
        "llama",
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
        4,
        "must hold tensors, but cannot be read",
    ),
    "missing tensor": ("llama", lambda f: tensors(f, lambda t: t.pop(K)), 4, f"must hold {K}, but does not"),
    "unknown tensor": (
        "llama",
        lambda f: tensors(f, lambda t: t.update({"model.extra": torch.zeros(2)})),
        4,
        "but also holds model.extra",
    ),
    "wrong shape": (
        "llama",
        lambda f: tensors(f, lambda t: t.update({K: torch.zeros(3, 32)})),
        4,
        f"{K} must have shape (20, 32) for this model, but has (3, 32)",
    ),
    "quantised tensor": (
        "llama",
        lambda f: tensors(f, lambda t: t.update({K: torch.zeros(20, 32, dtype=torch.int8)})),
        4,
        "quantised weights cannot be read",
    ),
    "tied but two tensors": (
        "tied",
        lambda f: tensors(f, lambda t: t.update({"lm_head.weight": torch.zeros(67, 32)})),
        4,
        "alike, since tie_word_embeddings is true, but they differ",
    ),
    "quantised model": (
        "llama",
        lambda f: configured(f, quantization_config={"quant_method": "fp8"}),
        2,
        "must be of weights that are not quantised, but they are (fp8)",
    ),
    "own code": (
        "llama",
        lambda f: configured(f, architectures=["OddForCausalLM"], auto_map={"AutoConfig": "x.Y"}),
        2,
        "(trust_remote_code), which is never run",
    ),
    "wrong architecture": (
        "llama",
        lambda f: configured(f, architectures=["BertForMaskedLM"]),
        2,
        "the architecture must be one of LlamaForCausalLM",
    ),
    "odd activation": (
        "llama",
        lambda f: configured(f, hidden_act="mish"),
        2,
        "hidden_act must be one of",
    ),
    "broken config": ("llama", lambda f: (f / "config.json").write_text("{"), 2, "config.json"),
    "odd heads": (
        "llama",
        lambda f: configured(f, num_attention_heads=3),
        2,
        "must be divisible by",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_source_is_refused_in_a_line(fault: str, made: dict[str, Path], refused: Run, place: Path) -> None:
    name, spoil, code, words = FAULTS[fault]
    spoil(copied(made[name], place))
    answer = refused("import", "src", "dst", code=code)
    assert words in answer.problems[0]
    assert not (place / "dst").exists()


def test_logits_that_differ_leave_nothing(made: dict[str, Path], refused: Run, place: Path) -> None:
    copied(made["llama"], place)
    read = LinkedWeights.read

    def turned(self: LinkedWeights, name: str) -> torch.Tensor:
        return read(self, name).flip(0) if name.endswith("mlp.gate_up.weight") else read(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LinkedWeights, "read", turned)
        answer = refused("import", "src", "dst", code=4)
    assert "must give transformers' logits within 0.0001, but the logits differ" in answer.problems[0]


def test_a_tokenizer_that_is_larger_than_the_vocabulary(made: dict[str, Path], refused: Run, place: Path) -> None:
    source = copied(made["llama"], place)
    from trainer.data.tokenizer import train_bpe

    train_bpe(["some text, and some more text"], 300).save(source)
    answer = refused("import", "src", "dst")
    assert "the tokenizer must have at most vocab_size (67) ids" in answer.problems[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["import"], "usage must be"),
        (["import", "nowhere", "dst"], "SRC must be a folder with config.json, or a Hugging Face name"),
        (["import", "src", "dst", "check=perhaps"], "check must be true or false"),
        (["import", "src", "dst", "seq_length=0"], "seq_length must be an integer of at least 1"),
        (["import", "src", "dst", "seq_length=²"], "seq_length must be an integer of at least 1"),
        (["import", "src", "dst", "check"], "usage must be"),
        (["import", "src", "dst", "seq_length"], "usage must be"),
        (["import", "src", "checkpoints"], "DST must be the folder of a run"),
        (["export"], "usage must be"),
        (["export", "src", "dst", "check=perhaps"], "check must be true or false"),
        (["export", "src", "dst", "--dtype", "fp8"], "--dtype must be one of fp32, bf16, fp16"),
        (["train", "model=hf"], "model=hf needs model.path"),
        (["train", "model=hf", "model.path=nowhere"], "model.path must be a folder with config.json"),
        (
            ["train", "model=hf", "model.path=src", "model.norm=layernorm", "checkpoint.init_from=src"],
            "must be of this",
        ),
    ],
)
def test_bad_words(words: list[str], problem: str, made: dict[str, Path], refused: Run, place: Path) -> None:
    copied(made["llama"], place)
    code = 4 if "checkpoint.init_from=src" in words else 2
    data = ["data.source=synthetic"] if words[0] == "train" else []
    assert problem in refused(*words, *data, code=code).problems[0]


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_an_old_pickle_is_read_and_one_with_code_is_not(
    is_zip: bool, made: dict[str, Path], trident: Run, place: Path, refused: Run
) -> None:
    source = copied(made["llama"], place)
    found, old = load_file(source / "model.safetensors"), source / "pytorch_model.bin"
    (source / "model.safetensors").unlink()
    torch.save(found, old, _use_new_zipfile_serialization=is_zip)
    assert trident("import", "src", "old").code == 0
    torch.save({**found, "model.norm.weight": Path("x")}, old, _use_new_zipfile_serialization=is_zip)
    (problem,) = refused("import", "src", "dst", code=4).problems
    assert problem.endswith(
        "must hold tensors and nothing else, but is damaged or holds other objects, whose code is never run"
    )
    torch.save({**found, "model.norm.weight": 3}, old, _use_new_zipfile_serialization=is_zip)
    assert "must hold tensors by their names" in refused("import", "src", "dst", code=4).problems[0]
    if is_zip:
        # Its time did not know such numbers.
        torch.save({**found, "model.norm.weight": found["model.norm.weight"].to(torch.float8_e4m3fn)}, old)
        assert "quantised weights cannot be read" in refused("import", "src", "dst", code=4).problems[0]
    old.write_bytes(b"torn")
    assert "must hold tensors and nothing else" in refused("import", "src", "dst", code=4).problems[0]


def test_a_pickle_with_tied_embeddings_is_compared(made: dict[str, Path], trident: Run, place: Path) -> None:
    source = copied(made["tied"], place)
    found = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    assert "lm_head.weight" not in found
    torch.save({name: one.bfloat16() for name, one in found.items()}, source / "pytorch_model.bin")
    answer = trident("import", "src", "run")
    assert answer.code == 0, answer.err
    assert "logits differ from transformers' by at most" in answer.out
    assert not [path for path in (place / "run").rglob("*") if "transformers" in path.name]


@pytest.mark.parametrize("words", [["import", "src", "new"], ["export", "run", "new"]])
def test_a_target_that_another_process_writes_is_left_to_it(
    words: list[str], made: dict[str, Path], trident: Run, place: Path, refused: Run
) -> None:
    copied(made["llama"], place)
    assert trident("import", "src", "run", "check=false").code == 0
    (place / "new" / "checkpoints").mkdir(parents=True)
    partial = place / ("new/checkpoints/.step_0.partial" if words[0] == "import" else ".new.partial")
    if words[0] == "export":
        (place / "new" / "checkpoints").rmdir()
    with own_folder(partial, "DST"):
        (partial / "theirs").write_text("theirs")
        assert "must not be written by another process" in refused(*words).problems[0]
    # What a killed one left is in nobody's way.
    assert trident(*words, "check=false").code == 0
    assert not partial.exists()


def test_a_target_that_another_process_has_filled_meanwhile_is_left_alone(
    made: dict[str, Path], trident: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(made["llama"], place)
    assert trident("import", "src", "run", "check=false").code == 0
    before = contents(place)
    # As if both had looked before either had written.
    monkeypatch.setattr("trainer.importing.check_target", lambda *_: None)
    answer = trident("import", "src", "run", "check=false")
    assert answer.code == 2
    assert "must not hold a run yet" in answer.problems[0]
    assert contents(place) == before


def test_numbers_that_are_none(made: dict[str, Path], trident: Run, refused: Run, place: Path) -> None:
    large = "model.layers.0.mlp.up_proj.weight"
    tensors(copied(made["llama"], place), lambda found: found.update({large: 1e6 * found[large]}))
    assert trident("import", "src", "run", "check=false").code == 0
    problem = refused("export", "run", "out", "--dtype", "fp16", "check=false", code=4).problems[0]
    assert f"{large} must hold numbers of float16" in problem
    assert trident("export", "run", "out", "check=false").code == 0
    tensors(place / "src", lambda found: found.update({"model.norm.weight": float("nan") * found["model.norm.weight"]}))
    assert "the weights hold NaN or Inf" in refused("import", "src", "dst", code=4).problems[0]


def test_a_config_that_is_too_deep(made: dict[str, Path], refused: Run, place: Path) -> None:
    source = copied(made["llama"], place)
    in_shards(source)
    (source / "model.safetensors.index.json").write_text("[" * 100_000)
    assert "must be an index with a weight_map" in refused("import", "src", "dst", code=4).problems[0]
    (source / "config.json").write_text("[" * 100_000)
    assert "that can be read" in refused("import", "src", "dst").problems[0]


@pytest.mark.parametrize("words", [["data.source=synthetic"], ["data.source=synthetic", "--dry-run"]])
def test_training_finds_weights_of_another_shape_before_it_writes(
    words: list[str], made: dict[str, Path], refused: Run, place: Path
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors(copied(made["llama"], place), lambda found: found.update({name: found[name][:-1].contiguous()}))
    model = ["model=hf", "model.path=src", "checkpoint.init_from=src", "run_dir=run"]
    assert f"{name} must have shape" in refused("train", *model, *words, code=4).problems[0]


def test_a_folder_of_a_model_does_not_become_that_of_a_run(made: dict[str, Path], place: Path, refused: Run) -> None:
    copied(made["llama"], place)
    assert "holds a Hugging Face model; change DST" in refused("import", "src", "src").problems[0]


def test_an_export_that_transformers_reads_differently_leaves_nothing(
    made: dict[str, Path], trident: Run, place: Path
) -> None:
    copied(made["llama"], place)
    assert trident("import", "src", "run", "check=false").code == 0
    before = contents(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.logits_check.TOLERANCE", -1.0)
        answer = trident("export", "run", "no/such/out")
    assert answer.code == 4
    assert "must give transformers' logits within" in answer.problems[0]
    assert contents(place) == before


def test_a_target_that_holds_something_is_left_alone(made: dict[str, Path], trident: Run, place: Path) -> None:
    copied(made["llama"], place)
    assert trident("import", "src", "run", "check=false").code == 0
    before = contents(place)
    assert "must not hold a run yet" in trident("import", "src", "run").problems[0]
    assert "must be a folder that does not exist yet or is empty" in trident("export", "run", "src").problems[0]
    assert contents(place) == before


@pytest.mark.parametrize("name", ["tokenizer/mine.txt", "hugging_face/mine.txt", "plan.json", "checkpoints/latest"])
def test_what_was_in_the_target_before_is_left_alone(
    name: str, made: dict[str, Path], refused: Run, place: Path
) -> None:
    (place / "dst" / name).parent.mkdir(parents=True)
    (place / "dst" / name).write_text("mine")
    copied(made["llama"], place)
    held = place / "dst" / name.removesuffix("/mine.txt")
    assert f"DST must not hold a run yet, but {held} is there" in refused("import", "src", "dst").problems[0]


def test_training_in_the_folder_of_an_import_names_the_way(
    made: dict[str, Path], trident: Run, refused: Run, place: Path
) -> None:
    copied(made["llama"], place)
    assert trident("import", "src", "run", "check=false").code == 0
    model = ["train", "model=hf", "model.path=src", "data=synthetic"]
    answer = refused(*model, "run_dir=run", "--dry-run")
    assert "run_dir must be a folder without an imported model" in answer.problems[0]
    assert f"checkpoint.init_from={place / 'run'}" in answer.hints[0]
    answer = refused(*model, "run_dir=other", "checkpoint.resume=run", "--dry-run")
    assert "checkpoint.resume must name a checkpoint of a run that has trained" in answer.problems[0]
    assert trident(*model, "run_dir=other", "checkpoint.init_from=run", "--dry-run").code == 0
