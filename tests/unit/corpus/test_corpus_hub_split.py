"""Parts of a split, as the `datasets` library writes them, also where it streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.unit.corpus.test_corpus_stdlib_and_hub import hub_config, saved
from tests.unit.data.data_fixtures import told, write_text
from trainer.corpus.read import documents

SLICES = {
    "train[:3]": "abc",
    "train[7:]": "hij",
    "train[2:4]": "cd",
    "train[:50%]": "abcde",
    "train[90%:]": "j",
    "train[25%:75%]": "cdefgh",
    "train[-2:]": "ij",
    "train[-20%:]": "ij",
    "train[:-8]": "ab",
    "train[:]": "abcdefghij",
    "train[:99]": "abcdefghij",
    "train[5:5]": "",
    "train[:2]+test[1:]": "abyz",
    "test+train[:1]": "xyza",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of two splits, as people have them."""
    for split, texts in (("train", "abcdefghij"), ("test", "xyz")):
        write_text(tmp_path / "set" / f"{split}.jsonl", "".join(f'{{"text": "{text}"}}\n' for text in texts))
    return tmp_path / "set"


def read(path: object, split: str, **values: object) -> str:
    return "".join(documents(hub_config(path, data__hub_split=split, **values)))


@pytest.mark.parametrize("split", SLICES)
def test_files_in_a_folder(folder: Path, split: str) -> None:
    assert read(folder, split) == SLICES[split]


@pytest.mark.parametrize("split", [split for split in SLICES if SLICES[split]])
def test_the_library_reads_the_same_where_it_does_not_stream(folder: Path, split: str, tmp_path: Path) -> None:
    rows = datasets.load_dataset(str(folder), split=split, cache_dir=str(tmp_path / "cache"))
    assert "".join(rows["text"]) == SLICES[split]


@pytest.mark.parametrize("split", SLICES)
def test_a_saved_set(tmp_path: Path, split: str) -> None:
    path = saved(tmp_path / "set", train=list("abcdefghij"), test=list("xyz"))
    assert read(path, split) == SLICES[split]


def test_documents_are_counted_after_that(folder: Path) -> None:
    assert read(folder, "train[2:]", data__max_documents=2) == "cd"


@pytest.mark.parametrize("split", ["train[:x]", "train[1]", "train[:101%]", "train[:5](pct1)", "train[:3", "[:3]"])
def test_what_cannot_be_read(folder: Path, split: str) -> None:
    assert told(lambda: read(folder, split)) == (
        f"data.hub_split must be like train, train+test, train[:1000] or train[10%:20%], but is {split}; to read only "
        "the first documents set data.max_documents"
    )


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    path = saved(tmp_path / "set", train=["a"])
    assert told(lambda: read(path, "dev[:1]")) == "data.hub_split must be one of train, but is dev"


class Stream:
    """Rows over a network."""

    def __init__(self, count: int | None) -> None:
        self.info = datasets.DatasetInfo()
        if count is not None:
            self.info.splits = {"train": datasets.SplitInfo("train", num_examples=count)}

    def __iter__(self) -> Any:
        return iter([{"text": text} for text in "abcd"])


@pytest.mark.parametrize("count", [None, 0])
def test_a_data_set_far_away_that_does_not_tell_its_size(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: Stream(count))
    assert read("org/name", "train[1:3]") == "bc"
    for split in ("train[:50%]", "train[-1:]"):
        assert told(lambda split=split: read("org/name", split)) == (  # type: ignore[misc]
            f"data.hub_split={split} needs the number of rows of train, which org/name does not tell; count in rows "
            "(train[:1000]), or set data.max_documents"
        )


def test_a_data_set_far_away_that_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: Stream(4))
    assert read("org/name", "train[50%:]") == "cd"
