"""Validation data of their own: files or a split that are named, of which nothing is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.shards import written_shard
from tests.unit.data.data_fixtures import config, stream, told, write_text
from trainer.config.schema import TridentConfig
from trainer.data.prepare import look_up, prepare
from trainer.data.tokenizer import load_tokenizer


def jsonl(path: Path, texts: list[str]) -> Path:
    return write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


TRAIN = [f"a text {number} to train on" for number in range(40)]
HELD_OUT = [f"another text {number}" for number in range(7)]


def wanted(tmp_path: Path, **values: object) -> TridentConfig:
    keys = {
        "data__source": "files",
        "data__files": [str(jsonl(tmp_path / "train.jsonl", TRAIN))],
        "data__validation_files": [str(jsonl(tmp_path / "val.jsonl", HELD_OUT))],
        "data__cache_dir": str(tmp_path / "cache"),
        "tokenizer__kind": "bytes",
    }
    return config(**(keys | values))


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_all_of_the_files_is_trained_on_and_all_of_the_named_ones_evaluated(tmp_path: Path, kind: str) -> None:
    found = wanted(tmp_path, tokenizer__kind=kind)
    assert look_up(found)[1] is None
    prepared = prepare(found)
    assert prepared.tokenizer_folder is not None
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    for part, texts in (("train", TRAIN), ("validation", HELD_OUT)):
        ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
        assert stream(prepared, part).tolist() == [id_ for document in ids for id_ in document]
        begins = np.cumsum([0, *map(len, ids[:-1])]).tolist()
        shards = prepared.shards(part)
        assert np.flatnonzero(shards.begins(0, len(shards))).tolist() == begins
    assert look_up(found)[1] == prepared


def test_the_data_follow_both(tmp_path: Path) -> None:
    before = prepare(wanted(tmp_path, data__mask_documents=True))
    other = str(jsonl(tmp_path / "other.jsonl", HELD_OUT[2:]))
    after = prepare(wanted(tmp_path, data__mask_documents=True, data__validation_files=[other]))
    assert after.content != before.content
    assert after.content.split("-")[0] == before.content.split("-")[0]
    assert after.boundaries != before.boundaries
    assert after.train_tokens == before.train_tokens


def test_the_place_of_validation_files_is_free(tmp_path: Path) -> None:
    """A node may have its copy elsewhere."""
    here = prepare(wanted(tmp_path))
    elsewhere = str(jsonl(tmp_path / "copy.jsonl", HELD_OUT))
    there = prepare(wanted(tmp_path, data__validation_files=[elsewhere]))
    assert there.content == here.content
    assert stream(there, "validation").tolist() == stream(here, "validation").tolist()


@pytest.mark.parametrize("source", ["megatron", "tokens"])
def test_files_of_ids_have_their_own_too(tmp_path: Path, source: str) -> None:
    names = []
    for name, documents in (("train", [[1, 2, 9], [3, 9]]), ("val", [[4, 9], [5, 6, 9]])):
        written_shard(tmp_path / name, documents)
        if source == "tokens":
            (tmp_path / name / "train-00000.idx").unlink()
        names.append(str(tmp_path / name / "train-00000.bin"))
    keys = {"data__eos_id": 9} if source == "tokens" else {}
    found = config(
        data__source=source,
        data__files=names[:1],
        data__validation_files=names[1:],
        data__cache_dir=str(tmp_path / "cache"),
        model__vocab_size=10,
        **keys,
    )
    prepared = prepare(found)
    assert stream(prepared).tolist() == [1, 2, 9, 3, 9]
    assert stream(prepared, "validation").tolist() == [4, 9, 5, 6, 9]
    assert np.flatnonzero(prepared.shards("validation").begins(0, 5)).tolist() == [0, 2]


def test_what_is_wrong_with_them_names_their_key(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.jsonl")
    assert told(lambda: prepare(wanted(tmp_path, data__validation_files=[gone]))) == (
        f"data.validation_files must name files that exist, but {gone!r} matches none"
    )
    empty = str(write_text(tmp_path / "empty.jsonl", ""))
    assert told(lambda: prepare(wanted(tmp_path, data__validation_files=[empty]))) == (
        "data.validation_files must give at least one document in it, but gave none"
    )


@pytest.mark.parametrize("how", ["same", "linked", "one of two", "copied"])
def test_what_is_trained_on_is_not_held_out_too(tmp_path: Path, how: str) -> None:
    trained_on = jsonl(tmp_path / "train.jsonl", TRAIN)
    other, linked, copied = (tmp_path / name for name in ("other.jsonl", "linked.jsonl", "copied.jsonl"))
    jsonl(other, HELD_OUT)
    linked.symlink_to(trained_on)
    copied.write_bytes(trained_on.read_bytes())
    named = {"same": [trained_on], "linked": [linked], "one of two": [other, trained_on], "copied": [copied]}[how]
    path = linked if how == "linked" else trained_on
    assert told(lambda: prepare(wanted(tmp_path, data__validation_files=[str(one) for one in named]))) == (
        "data.validation_files must hold other documents than data.files, but the tokens of a whole shard are the "
        "same; name other files"
        if how == "copied"
        else f"data.validation_files must name other files than data.files, but both name {path}; "
        "leave it out of one of them"
    )


def test_a_blend_has_them_for_a_source(tmp_path: Path) -> None:
    prepared = prepare(
        config(
            data__blend={
                "a": {
                    "weight": 1,
                    "files": [str(jsonl(tmp_path / "a.jsonl", TRAIN))],
                    "validation_files": [str(jsonl(tmp_path / "v.jsonl", HELD_OUT))],
                },
                "b": {"weight": 1, "files": [str(jsonl(tmp_path / "b.jsonl", TRAIN[:20]))], "validation_fraction": 0.0},
            },
            data__cache_dir=str(tmp_path / "cache"),
            tokenizer__kind="bytes",
        )
    )
    assert stream(prepared, "validation").tolist() == [id_ for text in HELD_OUT for id_ in [*text.encode(), 256]]
