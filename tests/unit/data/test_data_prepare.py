"""What is written: tokens, documents, splits, vocabularies, and what the user is told where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from tests.helpers.held_out import is_held_out, split_document
from tests.unit.data.data_fixtures import config, stream, told, write_text
from trainer.config.schema import TridentConfig
from trainer.data.prepare import prepare
from trainer.data.synthetic import synthetic_tokens
from trainer.data.tokenizer import FileTokenizer, load_tokenizer

DOCUMENTS = [f"document {number}: größer 🙂\n" * (1 + number % 5) for number in range(120)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_text(tmp_path / "corpus.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))


def text_config(path: Path, **values: object) -> TridentConfig:
    keys = {"tokenizer__kind": "bytes", "data__cache_dir": str(path.parent / "cache")} | values
    return config(data__source="files", data__files=[str(path)], **keys)


def pretrained(folder: Path, ids: dict[str, int]) -> Path:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0} | ids, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["</s>"])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    "tokenizer", [{"tokenizer__kind": "bytes"}, {"tokenizer__kind": "bpe", "tokenizer__vocab_size": 290}]
)
def test_every_document_is_its_ids_and_the_end(corpus: Path, tokenizer: dict[str, object]) -> None:
    prepared = prepare(text_config(corpus, data__validation_fraction=0.2, **tokenizer))
    assert prepared.tokenizer_folder is not None
    used = load_tokenizer(prepared.tokenizer_folder)
    assert prepared.vocab_size == used.vocab_size
    counts = {}
    for name, held_out in (("train", False), ("validation", True)):
        texts = [text for text in DOCUMENTS if is_held_out(text, 0.2) == held_out]
        expected = [i for text in texts for i in [*used.encode(text), used.eos_id]]
        assert stream(prepared, name).tolist() == expected
        counts[name] = len(expected)
    assert prepared.train_tokens == counts["train"] > 0
    assert prepared.validation_tokens == counts["validation"] > 0


def test_a_trained_tokenizer_has_not_seen_what_is_held_out(tmp_path: Path, corpus: Path) -> None:
    first = prepare(
        text_config(corpus, tokenizer__kind="bpe", tokenizer__vocab_size=290, data__validation_fraction=0.2)
    )
    kept = [text for text in DOCUMENTS if not is_held_out(text, 0.2)]
    write_text(corpus, "".join(json.dumps({"text": text}) + "\n" for text in kept))
    second = prepare(text_config(corpus, tokenizer__kind="bpe", tokenizer__vocab_size=290, data__validation_fraction=0))
    assert first.folder != second.folder
    names = [folder / "tokenizer" / "tokenizer.json" for folder in (first.folder, second.folder)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert stream(first).tolist() == stream(second).tolist()
    assert second.validation_tokens == 0


def test_one_long_file_serves_training_and_evaluation(tmp_path: Path) -> None:
    text = "".join(f"line {number} of one file\n" for number in range(20_000))
    path = write_text(tmp_path / "input.txt", text)
    prepared = prepare(text_config(path, data__validation_fraction=0.1))
    pieces = list(split_document(text, 0.1))
    assert 0 < prepared.validation_tokens < prepared.train_tokens
    assert prepared.validation_tokens + prepared.train_tokens == len(text) + len(pieces)
    assert (stream(prepared) == 256).sum() == sum(not held_out for held_out, _ in pieces)


def test_lone_surrogates_of_json_are_no_fault(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", '{"text": "a\\ud800b"}\n')
    for kind in ("bytes", "bpe"):
        prepared = prepare(text_config(path, tokenizer__kind=kind))
        assert prepared.tokenizer_folder is not None
        assert load_tokenizer(prepared.tokenizer_folder).decode(stream(prepared).tolist()) == "a?b"


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, "uint16"), (65_536, "int32")])
def test_the_type_holds_the_largest_id(tmp_path: Path, largest: int, dtype: str) -> None:
    folder = pretrained(tmp_path / "tok", {"a": 1, "far": largest})
    path = write_text(tmp_path / "a.txt", "far a far")
    prepared = prepare(text_config(path, tokenizer__kind="pretrained", tokenizer__path=str(folder)))
    assert prepared.manifest.parts["train"][0].dtype == dtype
    assert prepared.vocab_size == largest + 1
    assert stream(prepared).tolist()[:3] == [largest, 1, largest]
    assert (prepared.folder / "train-00000.bin").stat().st_size == prepared.train_tokens * np.dtype(dtype).itemsize


def test_what_a_small_text_gives_is_said_and_used(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "ab ab ab")
    said: list[str] = []
    prepared = prepare(text_config(path, tokenizer__kind="bpe", tokenizer__vocab_size=500), said.append)
    assert said == [
        "tokenising data.source=files",
        "the text is enough for 259 of tokenizer.vocab_size=500 tokenizer entries",
    ]
    assert prepared.vocab_size == 259


def test_a_small_text_for_a_model_of_fixed_size(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "ab ab ab")
    said: list[str] = []
    values: dict[str, Any] = {"tokenizer__kind": "bpe", "model__vocab_size": 500}
    assert told(lambda: prepare(text_config(path, **values), said.append)) == (
        "model.vocab_size (500) must not exceed the trained tokenizer's range, but the text is enough for only 259 "
        "entries; use more text, model.vocab_size=null, or tokenizer.allow_unused_ids=true"
    )
    assert said[-1] == "the text is enough for 259 of model.vocab_size=500 tokenizer entries"
    assert prepare(text_config(path, **values, tokenizer__allow_unused_ids=True)).vocab_size == 500


def test_a_vocabulary_that_fits_is_not_spoken_of(corpus: Path) -> None:
    said: list[str] = []
    prepare(text_config(corpus, tokenizer__kind="bpe", tokenizer__vocab_size=270), said.append)
    assert said == ["tokenising data.source=files"]


@pytest.fixture
def fixed_tokenizer(corpus: Path) -> dict[str, Any]:
    folder = pretrained(corpus.parent / "tok", {"document": 1})
    return {"tokenizer__kind": "pretrained", "tokenizer__path": str(folder)}


def test_a_model_smaller_than_the_tokenizer(corpus: Path, fixed_tokenizer: dict[str, Any]) -> None:
    for unused in (False, True):
        values = fixed_tokenizer | {"model__vocab_size": 2, "tokenizer__allow_unused_ids": unused}
        assert told(lambda: prepare(text_config(corpus, **values))) == (  # noqa: B023 - called at once
            "model.vocab_size (2) must hold all of the tokenizer's ids, but it has 3; set model.vocab_size=3 or null"
        )


def test_a_model_larger_than_the_tokenizer(corpus: Path, fixed_tokenizer: dict[str, Any]) -> None:
    assert told(lambda: prepare(text_config(corpus, **fixed_tokenizer, model__vocab_size=4))) == (
        "model.vocab_size (4) must not exceed the tokenizer's range (3): the rows above would never be trained; "
        "set model.vocab_size=3 or null, or tokenizer.allow_unused_ids=true"
    )
    allowed = text_config(corpus, **fixed_tokenizer, model__vocab_size=4, tokenizer__allow_unused_ids=True)
    assert prepare(allowed).vocab_size == 4
    for size in (3, None):
        assert prepare(text_config(corpus, **fixed_tokenizer, model__vocab_size=size)).vocab_size == 3


@pytest.mark.parametrize("content", ["", " \n"])
def test_no_documents(tmp_path: Path, content: str) -> None:
    path = write_text(tmp_path / "a.txt", content)
    for kind in ("bytes", "bpe"):
        expected = "data.files must give at least one document to train on, but gave none"
        assert told(lambda: prepare(text_config(path, tokenizer__kind=kind))) == expected  # noqa: B023 - called at once


def test_no_documents_from_the_hub(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": [""]}).save_to_disk(str(tmp_path / "set"))
    empty = config(
        data__source="hub",
        data__hub_path=str(tmp_path / "set"),
        data__cache_dir=str(tmp_path / "cache"),
        tokenizer__kind="bytes",
    )
    assert told(lambda: prepare(empty)) == (
        f"data.hub_path={tmp_path}/set must give at least one document to train on, but gave none"
    )


def test_everything_is_held_out(tmp_path: Path) -> None:
    held_out = next(text for text in map(str, range(99)) if is_held_out(text, 0.5))
    path = write_text(tmp_path / "a.txt", held_out)
    assert told(lambda: prepare(text_config(path, data__validation_fraction=0.5))) == (
        "data.files must leave something to train on, but data.validation_fraction=0.5 holds all of it out; "
        "lower data.validation_fraction, or use more data"
    )


def test_a_synthetic_stream_is_split_at_its_end(tmp_path: Path) -> None:
    prepared = prepare(
        config(
            data__source="synthetic",
            data__synthetic_tokens=1000,
            data__validation_fraction=0.1,
            data__cache_dir=str(tmp_path),
            model__vocab_size=50,
            train__seed=7,
        )
    )
    tokens = synthetic_tokens(1000, 50, 7)
    assert stream(prepared).tolist() == tokens[:900].tolist()
    assert stream(prepared, "validation").tolist() == tokens[900:].tolist()
    assert prepared.tokenizer_folder is None
    assert prepared.vocab_size == 50


def test_a_large_synthetic_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    prepared = prepare(
        config(
            data__source="synthetic",
            data__synthetic_tokens=2000,
            data__cache_dir=str(tmp_path),
            model__vocab_size=200_000,
        )
    )
    assert prepared.manifest.parts["train"][0].dtype == "int32"
    assert stream(prepared).tolist() == synthetic_tokens(2000, 200_000, 1234)[:1960].tolist()
    assert stream(prepared).max() > 65_535


def test_the_embedded_default_is_real_text(tmp_path: Path) -> None:
    wanted = config(data__max_documents=20, tokenizer__vocab_size=600, data__cache_dir=str(tmp_path))
    prepared = prepare(wanted)
    assert prepared.tokenizer_folder is not None
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    assert isinstance(tokenizer, FileTokenizer)
    assert prepared.vocab_size == 600
    text = tokenizer.decode(stream(prepared)[:2000].tolist())
    assert "import" in text
    assert "def " in text
