"""Which tokens they are does not depend on where the files lie, only on what is in them and in which order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.data.data_fixtures import config, write_text
from tests.unit.data.test_data_megatron import write_pair
from trainer.config.schema import TridentConfig
from trainer.data.prepare import prepare
from trainer.data.prepared import stream_identity
from trainer.data.tokenizer import train_bpe


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "c/a.jsonl"):
        text = f"{name} has some text to train on\n" * 30
        write_text(tmp_path / "corpus" / name, f'{{"text": "{name} of one line"}}\n' if "json" in name else text)
    return tmp_path / "corpus"


def identity(here: Path, *files: object, **values: object) -> str:
    keys = {"tokenizer__kind": "bytes", "data__cache_dir": str(here / "cache"), "data__source": "files"} | values
    wanted: TridentConfig = config(data__files=[str(name) for name in files], **keys)
    return stream_identity(prepare(wanted), wanted)


def test_the_same_files_elsewhere(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = identity(tmp_path, corpus / "*.txt", corpus / "c" / "a.jsonl")
    shutil.copytree(corpus, tmp_path / "node local é" / "copy")
    (tmp_path / "link").symlink_to(corpus)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    moved = {
        "a copy": ("node local é/copy/*.txt", "node local é/copy/c/a.jsonl"),
        "a relative path": ("corpus/*.txt", "corpus/c/a.jsonl"),
        "a linked folder": ("link/*.txt", "link/c/a.jsonl"),
        "a home": ("~/corpus/*.txt", "~/corpus/c/a.jsonl"),
        "a list in another order": ("corpus/c/a.jsonl", "corpus/b.txt", "corpus/a.txt"),
        "one glob": ("corpus/**/*.*",),
        "named twice": ("corpus/*.txt", "link/a.txt", "corpus/c/*"),
    }
    assert {name: identity(tmp_path, *files) for name, files in moved.items()} == dict.fromkeys(moved, base)
    assert identity(tmp_path / "other", corpus / "**/*.*") == base, "another cache"


def test_other_tokens_are_others(corpus: Path, tmp_path: Path) -> None:
    base = identity(tmp_path, corpus / "*.txt")
    assert identity(tmp_path, corpus / "a.txt") != base
    assert identity(tmp_path, corpus / "*.txt", data__max_documents=1) != base
    shutil.copytree(corpus, tmp_path / "copy")
    # The same texts in another order.
    (tmp_path / "copy" / "a.txt").rename(tmp_path / "copy" / "z.txt")
    assert identity(tmp_path, tmp_path / "copy" / "*.txt") != base
    write_text(corpus / "a.txt", "a.txt has some text to train of\n" * 30)
    assert identity(tmp_path, corpus / "*.txt") != base


def test_a_tokenizer_elsewhere(corpus: Path, tmp_path: Path) -> None:
    bpe = train_bpe(["some text to train on"] * 9, 300)
    other = train_bpe(["another text on which to train"] * 9, 300)
    for name, made in (("one", bpe), ("two", bpe), ("other", other)):
        (tmp_path / name).mkdir()
        made.save(tmp_path / name)
    found = [
        identity(tmp_path, corpus / "*.txt", tokenizer__kind="pretrained", tokenizer__path=str(tmp_path / path))
        for path in ("one", "one/tokenizer.json", "two", "other")
    ]
    assert found[0] == found[1] == found[2] != found[3]


def test_megatron_pairs_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    write_pair(tmp_path / "a")
    write_pair(tmp_path / "copy" / "b")
    write_pair(tmp_path / "c", [[1, 2, 3], [5]])
    ids = {"data__source": "megatron", "tokenizer__kind": "bpe", "model__vocab_size": 100}
    found = [identity(tmp_path, tmp_path / name, **ids) for name in ("a", "a.bin", "copy/b", "c")]
    assert found[0] == found[1] == found[2] != found[3]
