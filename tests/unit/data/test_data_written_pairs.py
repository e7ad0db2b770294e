"""Tokens as pairs for other trainers: what another reader finds in them, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import trainer.data.written_pairs as written_module
from tests.helpers.megatron_reader import read_documents
from tests.unit.data.data_fixtures import config, stream, told, write_text
from trainer.cli import main
from trainer.config.schema import TridentConfig
from trainer.data.prepare import prepare
from trainer.data.written_pairs import write_pairs
from trainer.errors import ConfigError

TEXTS = [f"text {number} " * (number % 5 + 1) for number in range(60)]


def wanted(tmp_path: Path, **values: object) -> TridentConfig:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    keys = {
        "data__source": "files",
        "data__files": [str(write_text(tmp_path / "a.jsonl", lines))],
        "data__cache_dir": str(tmp_path / "cache"),
        "data__validation_fraction": 0.2,
        "data__test_fraction": 0.1,
        "tokenizer__kind": "bytes",
    }
    return config(**(keys | values))


@pytest.mark.parametrize("block", [7, 1 << 22])
def test_another_reader_finds_the_documents_and_they_come_back(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written_module, "_BLOCK", block)
    found = wanted(tmp_path)
    prepared = prepare(found)
    written = list(write_pairs(prepared, found, tmp_path / "mine"))
    assert [pair.prefix.name for pair in written] == ["mine_train", "mine_validation", "mine_test"]
    texts = []
    for pair, part in zip(written, ("train", "validation", "test"), strict=True):
        documents = read_documents(pair.prefix)
        assert [id_ for document in documents for id_ in document] == stream(prepared, part).tolist()
        assert all(document[-1] == 256 and 256 not in document[:-1] for document in documents)
        texts += [bytes(document[:-1]).decode() for document in documents]
        back = config(
            data__source="megatron",
            data__files=[str(pair.prefix)],
            data__cache_dir=str(tmp_path / "cache"),
            data__validation_fraction=0,
            model__vocab_size=257,
        )
        again, shards = prepare(back), prepared.shards(part)
        assert stream(again).tolist() == stream(prepared, part).tolist()
        assert np.array_equal(again.shards("train").begins(0, len(shards)), shards.begins(0, len(shards)))
    assert sorted(texts) == sorted(TEXTS)
    assert not list(tmp_path.glob("*.partial*"))


def test_each_source_of_a_blend_has_its_own(tmp_path: Path) -> None:
    sources = {
        name: {"weight": 1, "files": [str(write_text(tmp_path / f"{name}.txt", name * 9))], "validation_fraction": 0.0}
        for name in ("web", "code")
    }
    found = config(data__blend=sources, data__cache_dir=str(tmp_path / "cache"), tokenizer__kind="bytes")
    list(write_pairs(prepare(found), found, tmp_path / "mine"))
    for name in sources:
        assert read_documents(tmp_path / f"mine_{name}_train") == [[*(name * 9).encode(), 256]]


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    found = wanted(tmp_path)
    prepared = prepare(found)
    (tmp_path / "mine_validation.idx").write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        list(write_pairs(prepared, found, tmp_path / "mine"))
    assert str(caught.value) == (
        f"PREFIX must name pairs that are not there yet, but {tmp_path}/mine_validation.idx is; change it"
    )
    assert not (tmp_path / "mine_train.bin").exists()
    with pytest.raises(ConfigError, match=r"PREFIX must be in a folder that exists, but .*/gone is none; make it"):
        list(write_pairs(prepared, found, tmp_path / "gone" / "mine"))


def test_examples_are_no_documents(tmp_path: Path) -> None:
    record = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    found = wanted(
        tmp_path,
        data__files=[str(write_text(tmp_path / "p.jsonl", record))],
        data__records="prompt_completion",
        data__validation_fraction=0,
        data__test_fraction=0,
    )
    prepared = prepare(found)
    problem = told(lambda: list(write_pairs(prepared, found, tmp_path / "mine")))
    assert problem == (
        "a Megatron pair holds documents alone, but data.records=prompt_completion are examples that say which of "
        "their tokens count; use data.records=text"
    )


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "a.txt", "some text\n" * 30)
    words = [
        "data=files",
        "data.files=[a.txt]",
        "tokenizer=bytes",
        "data.cache_dir=cache",
        "data.validation_fraction=0",
    ]
    assert main(["data", "write", "--to", "megatron", "out", *words, "train.eval_every=0"]) == 0
    assert f"301 tokens of 1 documents, uint16, in {tmp_path}/out_train.bin and .idx" in capsys.readouterr().out
    assert read_documents(tmp_path / "out_train") == [[*("some text\n" * 30).encode(), 256]]
    for arguments, problem in (
        (["--to", "megatron", *words], "PREFIX must be the first word, but the first is 'data=files'"),
        (["--to", "megatron"], "PREFIX must be the first word, but there is none"),
        (["out", *words], "--to must say the form, but is missing; use --to megatron"),
        (["out", "--to", "olmo", *words], "--to"),
    ):
        assert main(["data", "write", *arguments]) == 2
        assert problem in capsys.readouterr().err
