"""`model=hf model.path=SRC`: which keys the source gives, which stay, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.config.compose import compose
from trainer.config.schema import TokenizerKind, TridentConfig
from trainer.errors import ConfigError

SIZES = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model's config.json and a tokenizer, to stand beside."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **SIZES}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def written(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def shape(config: TridentConfig) -> tuple[int, int, int, bool]:
    model = config.model
    return model.hidden_size, model.num_layers, model.seq_length, model.tied_embeddings


RECIPE = "defaults:\n  - override /model: hf\nmodel:\n  path: src\n"
TYPED = ["model=hf", "model.path=src", "model.seq_length=128", "model.num_layers=4", "model.tied_embeddings=true"]
OWN = "  seq_length: 128\n  num_layers: 4\n  tied_embeddings: true\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"conf/experiment/own.yaml": RECIPE + OWN}, ["experiment=own"]),
        ({"conf/model/mine.yaml": f"defaults:\n  - hf\npath: src\n{OWN.replace('  ', '')}"}, ["model=mine"]),
        ({}, TYPED),
    ],
)
def test_what_a_file_or_a_word_names_stays_even_where_it_is_the_default(
    files: dict[str, str], words: list[str], source: Path
) -> None:
    for path, text in files.items():
        written(path, text)
    assert shape(compose(words)) == (48, 4, 128, True)


def test_the_source_goes_over_what_was_merged_before_it(source: Path) -> None:
    written("old.yaml", "model:\n  hidden_size: 96\n  num_layers: 3\n  seq_length: 64\n  dropout: 0.5\n")
    config = compose(["config=old.yaml", "model=hf", "model.path=src"])
    assert shape(config) == (48, 6, 2048, False)
    assert config.model.dropout == 0.5


@pytest.mark.parametrize("words", [[], ["model=gpt2_124m"]])
def test_a_path_without_model_hf_is_refused(words: list[str], source: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.path needs model=hf"):
        compose([*words, "model.path=src"])


def test_a_source_without_a_tokenizer_is_refused_unless_one_is_chosen(source: Path) -> None:
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_text("x")
    words = ["model=hf", "model.path=src"]
    with pytest.raises(ConfigError, match=r"model\.path must hold tokenizer\.json, but src does not"):
        compose(words)
    assert compose([*words, "data=synthetic"]).tokenizer.path is None
    assert compose([*words, "tokenizer=bpe"]).tokenizer.kind is TokenizerKind.bpe
    assert compose([*words, "tokenizer=pretrained", "tokenizer.path=there"]).tokenizer.path == "there"


def test_a_tokenizer_that_is_chosen_goes_over_the_sources(source: Path) -> None:
    words = ["model=hf", "model.path=src"]
    assert compose(words).tokenizer.path == "src"
    assert compose([*words, "tokenizer=bpe"]).tokenizer.kind is TokenizerKind.bpe
