from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Answer, Run, contents

BYTES = "tokenizer=bytes"


def train_on(refused: Run, *words: str) -> Answer:
    return refused("train", "data=files", "runtime.device=cpu", *words)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("empty.txt", b"", ["must give at least one document to train on, but gave none"]),
        ("blank.txt", b" \n\t\n", ["must give at least one document to train on, but gave none"]),
        ("latin.txt", "caf\u00e9 ".encode("latin-1") * 50, ["must be UTF-8", "latin.txt is not at byte 3"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["must be JSON", "line 2", "broken.jsonl"]),
        ("other.jsonl", b'{"content": "a"}\n', ["other.jsonl", "data.text_key=text", "line 1", "content"]),
        ("number.jsonl", b"3\n", ["number.jsonl", "data.text_key=text", "line 1", "no object"]),
        ("cut.txt.gz", gzip.compress(b"text " * 100)[:-9], ["must be readable", "cut.txt.gz is not"]),
        ("no.parquet", b"not parquet", ["must be readable", "no.parquet"]),
        ("book.pdf", b"%PDF", ["must end in .txt, .jsonl, .ndjson", "book.pdf"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("layout", ["single", "tp2"])
def test_files_that_cannot_be_used(
    name: str, content: bytes, parts: list[str], layout: str, refused: Run, place: Path
) -> None:
    (place / name).write_bytes(content)
    answer = train_on(refused, BYTES, f"data.files=[{name}]", f"layout={layout}")
    assert len(answer.problems) == 1
    for part in parts:
        assert part in answer.problems[0]


def test_an_empty_file_trains_no_tokenizer(refused: Run, place: Path) -> None:
    (place / "empty.txt").touch()
    assert "but gave none" in train_on(refused, "data.files=[empty.txt]").problems[0]


def test_missing_files(refused: Run) -> None:
    assert train_on(refused, "data.files=['none/*.txt']").problems == [
        "data.files must name files that exist, but 'none/*.txt' matches none"
    ]
    assert "data.source=files needs data.files" in train_on(refused).problems[0]


def test_a_folder_is_no_file(refused: Run, place: Path) -> None:
    (place / "corpus").mkdir()
    assert "'corpus' matches" in train_on(refused, "data.files=[corpus]").problems[0]


def test_a_cache_that_cannot_be_made(refused: Run, place: Path) -> None:
    (place / "a.txt").write_text("text " * 100)
    (place / "cache").touch()
    answer = train_on(refused, BYTES, "data.files=[a.txt]", "data.cache_dir=cache")
    assert "data.cache_dir must be a folder that can be written, but " in answer.problems[0]


@pytest.mark.parametrize("layout", ["single", "tp2"])
def test_less_data_than_one_batch(layout: str, refused: Run, place: Path) -> None:
    # 16 documents of 9 tokens; none is held out.
    lines = (json.dumps({"text": f"{index:08}"}) for index in range(16))
    (place / "a.jsonl").write_text("\n".join(lines))
    words = [BYTES, "data.files=[a.jsonl]", "data.validation_fraction=0", f"layout={layout}"]
    answer = train_on(refused, *words, "model.seq_length=12", "batch.global_batch_size=12")
    assert answer.problems == [
        "the training data must hold at least one global batch (12 sequences of 12 tokens), but hold 144 tokens = "
        "11 sequences; use more data, or lower batch.global_batch_size or model.seq_length"
    ]
    limited = train_on(refused, *words, "model.seq_length=8", "data.max_samples=4")
    assert "data.max_samples (4)" in limited.problems[0]
    assert "batch.global_batch_size" in limited.problems[0]


@pytest.mark.parametrize("layout", ["single", "tp2"])
def test_nothing_to_evaluate(layout: str, refused: Run) -> None:
    answer = refused(
        *("train", "data=synthetic", "model.vocab_size=64", "runtime.device=cpu", f"layout={layout}"),
        *("data.synthetic_tokens=4096", "data.validation_fraction=0.001", "train.eval_every=5", "model.seq_length=8"),
    )
    assert "the validation data must hold at least one sequence of 8 tokens, but hold 4 tokens" in answer.problems[0]


@pytest.mark.parametrize("layout", ["single", "tp2"])
def test_more_ids_than_the_text_gives(layout: str, refused: Run, place: Path) -> None:
    (place / "a.txt").write_text("abcabcabc " * 400)
    answer = train_on(
        refused, "data.files=[a.txt]", "data.validation_fraction=0", "model.vocab_size=2000", f"layout={layout}"
    )
    problem = answer.problems[0]
    assert problem.startswith("model.vocab_size (2000) must not exceed the ")
    assert problem.endswith("tokenizer.allow_unused_ids=true")


def test_fewer_ids_than_the_tokenizer_has(refused: Run, place: Path) -> None:
    (place / "a.txt").write_text("text " * 100)
    answer = train_on(refused, BYTES, "data.files=[a.txt]", "model.vocab_size=100")
    assert "must be at most model.vocab_size (100); use model.vocab_size=257" in answer.problems[0]


def test_a_tokenizer_that_is_not_there(refused: Run, place: Path) -> None:
    (place / "a.txt").write_text("text " * 100)
    (place / "folder").mkdir()
    words = ["data.files=[a.txt]", "tokenizer.kind=pretrained"]
    assert "tokenizer.path must be a tokenizer.json" in train_on(refused, *words, "tokenizer.path=folder").problems[0]
    (place / "folder" / "tokenizer.json").write_text("{}")
    assert "cannot be read" in train_on(refused, *words, "tokenizer.path=folder").problems[0]


def test_the_data_verb_refuses_alike(refused: Run, place: Path) -> None:
    (place / "empty.txt").touch()
    answer = refused("data", "data=files", BYTES, "data.files=[empty.txt]")
    assert "but gave none" in answer.problems[0]


def test_the_data_verb_prepares(trident: Run, place: Path) -> None:
    (place / "a.txt").write_text("text " * 100)
    answer = trident("data", "data=files", BYTES, "data.files=[a.txt]", "data.validation_fraction=0")
    assert answer.code == 0
    assert "501 tokens to train on and 0 to validate with, vocabulary 257, in " in answer.out
    assert set(contents(place)) == {"a.txt"}
