"""`trident data inspect` as a person types it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.cli.conftest import Answer, Run

SENTENCES = [f"This is text number {i}, and it is like no other one but {i}.\x07\n" for i in range(40)]


@pytest.fixture
def texts(place: Path) -> Path:
    path = place / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*SENTENCES, SENTENCES[3]]))
    return path


@pytest.fixture
def folder(trident: Run, texts: Path) -> Path:
    made = trident("data", "data=files", f"data.files=[{texts}]", "tokenizer.vocab_size=300")
    assert made.code == 0, made.err
    return Path(made.out.split(" in ")[-1].strip())


def fault(answer: Answer) -> str:
    assert answer.code == 2
    assert answer.out == ""
    (problem,) = answer.problems
    return problem


def test_prepared_tokens(trident: Run, folder: Path, place: Path) -> None:
    shown = trident("data", "inspect", str(folder), "--documents", "50", "--picture", "look.svg")
    assert shown.code == 0, shown.err
    assert "documents       41 whole, all that there are" in shown.out
    assert "special tokens  <|endoftext|> 41" in shown.out
    assert "the same        1 of 41 documents are copies of an earlier one (2.44%)" in shown.out
    assert "This is text number 7, and it is like no other one but 7.\\x07\\n\n[<|endoftext|>]" in shown.out
    assert shown.out.count("--- a document of train") + shown.out.count("--- a document of validation") == 41
    title = next(ET.parse(place / "look.svg").iter("{http://www.w3.org/2000/svg}title"))
    assert title.text is not None
    assert title.text.startswith(f"prepared tokens at {folder}; 41 documents; lengths in tokens: median ")


def test_the_same_picture_twice(trident: Run, folder: Path, place: Path) -> None:
    for name in ("one.svg", "two.svg"):
        assert trident("data", "inspect", str(folder), "--picture", name).code == 0
    assert (place / "one.svg").read_bytes() == (place / "two.svg").read_bytes()


def test_as_json(trident: Run, folder: Path) -> None:
    found = json.loads(trident("data", "inspect", str(folder), "--json", "--documents", "1").out)
    assert found["documents"] == found["documents_in_all"] == 41
    assert found["exact_duplicates"]["copies"] == 1
    assert found["vocabulary"]["special"] == [{"id": 0, "token": "<|endoftext|>", "count": 41}]
    assert found["near_duplicates"]["resemblance_error"] == pytest.approx(0.0354, abs=1e-4)
    assert len(found["samples"]) == 1
    assert sum(count for _, _, count in found["lengths"]["histogram"]) == 41


def test_a_pair_without_a_tokenizer_shows_ids_and_one_is_named(trident: Run, folder: Path) -> None:
    prefix = str(folder / "train-00000")
    shown = trident("data", "inspect", prefix)
    assert "tokenizer       none" in shown.out
    assert "\nids " in shown.out
    named = trident("data", "inspect", prefix, "tokenizer=pretrained", f"tokenizer.path={folder / 'tokenizer'}")
    assert "This is text number" in named.out


def test_texts_with_a_tokenizer_and_another_field(trident: Run, place: Path) -> None:
    (place / "x.jsonl").write_text('{"body": "one two"}\n')
    shown = trident("data", "inspect", "x.jsonl", "data.text_key=body", "tokenizer=bytes")
    assert "length          median 7, mean 7.0" in shown.out
    assert "PATH must hold at least one document, but" in fault(trident("data", "inspect", "x.jsonl"))


def test_a_run(trident: Run, texts: Path, place: Path) -> None:
    settings = ("data=files", f"data.files=[{texts}]", "tokenizer.vocab_size=300")
    assert trident("data", *settings).code == 0
    run = place / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(trident("train", "--cfg", "job", *settings, f"run_dir={run}", "name=mine").out)
    assert f"prepared tokens {run}" in trident("data", "inspect", str(run)).out
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("vocab_size: 300", "vocab_size: 299"))
    assert "must be a run whose data are prepared here" in fault(trident("data", "inspect", str(run)))


def test_a_run_of_a_blend_is_shown_by_its_sources(trident: Run, texts: Path, place: Path) -> None:
    more = place / "more.jsonl"
    more.write_text("".join(json.dumps({"text": f"more {text}"}) + "\n" for text in SENTENCES))
    settings = (
        *("tokenizer=bytes", "model.vocab_size=257"),
        f"data.blend={{one: {{weight: 1, files: [{texts}]}}, two: {{weight: 3, files: [{more}]}}}}",
    )
    made = trident("data", *settings)
    assert made.code == 0, made.err
    run = place / "runs" / "blend"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(trident("train", "--cfg", "job", *settings, f"run_dir={run}", "name=mine").out)
    shown = trident("data", "inspect", str(run), "--documents", "0")
    assert shown.code == 0, shown.err
    assert "one train " in shown.out
    assert "two train " in shown.out
    assert "documents       81 whole, all that there are" in shown.out


def test_what_cannot_be_looked_at(trident: Run, folder: Path, place: Path) -> None:
    assert fault(trident("data", "inspect")) == "usage must be `trident data inspect PATH`, but there is no path"
    assert "but there is nothing at" in fault(trident("data", "inspect", "nothing"))
    assert "PATH must be a path, but is empty" in fault(trident("data", "inspect", ""))
    assert "has no effect on what is looked at" in fault(trident("data", "inspect", str(folder), "train.steps=1"))
    assert fault(trident("data", "inspect", str(folder), "--documents", "x")) == (
        "--documents must be a whole number of at least 0, but is 'x'"
    )
    assert "holds such folders; name one of them" in fault(trident("data", "inspect", str(folder.parent)))
    (place / "empty").mkdir()
    assert "PATH must be a folder of prepared tokens" in fault(trident("data", "inspect", "empty"))
    (place / "half.idx").write_bytes(b"12")
    assert "half.bin is missing" in fault(trident("data", "inspect", "half"))
    assert "--picture must end in .svg or .png" in fault(trident("data", "inspect", str(folder), "--picture", "x.pdf"))
    (place / "old").mkdir()
    (place / "old" / "meta.json").write_text("{}")
    (place / "old" / "train.bin").write_bytes(b"1234")
    assert "is of an earlier one; run `trident data`" in fault(trident("data", "inspect", "old"))


def test_a_damaged_folder(trident: Run, folder: Path) -> None:
    shard = folder / "train-00000.bin"
    held = shard.read_bytes()
    try:
        shard.write_bytes(held[:-2])
        assert "is damaged" in fault(trident("data", "inspect", str(folder)))
    finally:
        shard.write_bytes(held)
