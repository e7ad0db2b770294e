"""A run goes on when its data are found elsewhere, and is refused when they are others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from trainer.beginning import Beginning
from trainer.config.compose import compose, to_yaml
from trainer.data.prepare import prepare
from trainer.data.prepared import stream_identity
from trainer.data.tokenizer import train_bpe
from trainer.run_folder import STREAM

WORDS = ("data=files", "tokenizer=bytes", "model.seq_length=16", "batch.global_batch_size=4", "run_dir=run")


@pytest.fixture
def used(place: Path) -> Path:
    """A folder in which a step was trained on corpus/a.txt."""
    for name in ("corpus", "other"):
        (place / name).mkdir()
        (place / name / "a.txt").write_text(f"what stands in the {name}\n" * 50)
    config = compose([*WORDS, "data.files=[corpus/a.txt]"])
    folder = place / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "plan.json").write_text(json.dumps({STREAM: stream_identity(prepare(config), config)}))
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return folder


@pytest.mark.parametrize("files", ["corpus/*.txt", "{place}/corpus/a.txt", "copy/a.txt", "link/a.txt"])
def test_the_same_data_elsewhere(used: Path, place: Path, files: str) -> None:
    shutil.copytree(place / "corpus", place / "copy")
    (place / "link").symlink_to("corpus")
    Beginning(compose([*WORDS, f"data.files=[{files.format(place=place)}]", "data.cache_dir=new_cache"])).prepared()


def test_from_another_working_folder(used: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    Beginning(compose([*WORDS, "data.files=[../corpus/a.txt]", "run_dir=../run"])).prepared()


@pytest.mark.parametrize("layout", ["single", "dp2"])
def test_other_data(refused: Run, used: Path, layout: str) -> None:
    answer = refused("train", *WORDS, "data.files=[other/a.txt]", f"layout={layout}")
    assert answer.problems == [
        "data.files must give the tokens that this run began with, wherever they lie, but gives others"
    ]
    assert answer.hints == [
        "put back the data, or give data.files the value in the run's config.yaml",
        "set run_dir to another folder to start anew",
    ]


def test_other_content_of_the_same_file(refused: Run, used: Path, place: Path) -> None:
    with (place / "corpus" / "a.txt").open("a") as file:
        file.write("one line more\n")
    answer = refused("train", *WORDS, "data.files=[corpus/a.txt]")
    assert answer.problems[0].startswith("data.files must give the tokens that this run began with")
    assert answer.hints[0] == "put back the data"


def test_the_other_keys_of_the_data_are_compared_as_they_are(refused: Run, used: Path) -> None:
    answer = refused("train", *WORDS, "data.files=[corpus/a.txt]", "data.max_documents=1")
    assert answer.problems[0].endswith("holds one that differs in data.max_documents")


def test_a_run_of_an_earlier_version_has_no_record(used: Path) -> None:
    (used / "plan.json").write_text("{}")
    # Its checkpoints, had it any, would tell.
    Beginning(compose([*WORDS, "data.files=[other/a.txt]"])).prepared()


def test_a_run_of_a_version_that_guessed_the_end_of_text(refused: Run, used: Path, place: Path) -> None:
    for folder in (place / "tok", used / "tokenizer"):
        folder.mkdir()
        train_bpe(["what stands in the corpus"] * 9, 300).save(folder)
        (folder / "tokenizer_config.json").unlink()
    words = [*WORDS, "tokenizer=pretrained", "tokenizer.path=tok"]
    (used / "config.yaml").write_text(to_yaml(compose([*words, "data.files=[corpus/a.txt]"])))
    answer = refused("train", *words, "data.files=[corpus/a.txt]", 'tokenizer.eos_token="<|endoftext|>"')
    assert answer.problems[0].startswith("tokenizer.eos_token must give the tokens that this run began with")
    assert answer.hints[0].startswith("an earlier version began this run and guessed tokenizer.eos_token")
