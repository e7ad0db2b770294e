"""Pairs as they are written: what other readers of the format find in them, and what streams of shards find."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trainer.data.megatron_pair as pair_module
from tests.helpers.held_out import split_document
from tests.helpers.megatron_reader import read_documents, read_sequences
from tests.helpers.shards import shard_set, written_shard
from tests.unit.data.data_fixtures import config, told, write_text
from trainer.data.megatron_index import CODES, PairIndex
from trainer.data.megatron_pair import PairWriter
from trainer.data.prepare import prepare
from trainer.data.prepared import stream_identity
from trainer.data.shard_set import ShardSet

DOCUMENTS = [[1, 2, 3], [4], [], [5, 6, 7, 8], [99, 0]]
KEPT = [document for document in DOCUMENTS if document]


@pytest.mark.parametrize("dtype", list(CODES))
def test_another_reader_finds_every_document(tmp_path: Path, dtype: str) -> None:
    largest = int(np.iinfo(dtype).max)
    with PairWriter(tmp_path / "a.b_document", dtype) as writer:
        for document in [*DOCUMENTS, [largest]]:
            writer.append(np.array(document, np.int64))
    assert read_documents(tmp_path / "a.b_document") == [*KEPT, [largest]]
    assert (writer.tokens, writer.documents, writer.largest_id) == (11, 5, largest)
    assert writer.digest == hashlib.blake2b((tmp_path / "a.b_document.bin").read_bytes(), digest_size=16).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b_document.bin", "a.b_document.idx"]


def test_a_pair_without_documents(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "a", "uint16") as writer:
        writer.append(np.empty(0, np.int64))
    assert read_sequences(tmp_path / "a") == ([], [0])
    assert (writer.tokens, writer.documents, writer.largest_id) == (0, 0, -1)


def test_ids_that_are_made_elsewhere_and_documents_in_parts(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "a", "uint16") as writer:
        writer.append_raw(np.array([1, 2, 3, 4], "<u2").tobytes(), np.array([3, 0, 1]), is_open=True)
        writer.append_raw(b"", np.array([0]), is_open=True)
        writer.append_raw(b"", np.array([], np.int64))
        writer.append(np.array([5]), is_open=True)
        writer.append_raw(np.array([6, 7], "<u2").tobytes(), np.array([0, 2]))
        writer.append(np.array([8]), is_open=True)
    assert read_documents(tmp_path / "a") == [[1, 2, 3], [4, 5], [6, 7], [8]]
    ends = np.array([3, 5, 7, 8], "<i8").tobytes()
    assert writer.ends_digest == hashlib.blake2b(ends, digest_size=16).hexdigest()
    assert writer.documents == 4


def test_lengths_of_other_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lengths must be those of 2 ids, but together are 3"):  # noqa: SIM117
        with PairWriter(tmp_path / "a", "uint16") as writer:
            writer.append_raw(b"\0\0\0\0", np.array([3]))
    # A pair is whole or has no index.
    assert not (tmp_path / "a.idx").exists()


@pytest.mark.parametrize(("dtype", "wrong"), [("uint16", 65_536), ("uint16", -1), ("int32", 1 << 31), ("int8", 128)])
def test_an_id_that_does_not_fit_is_never_stored_as_another(tmp_path: Path, dtype: str, wrong: int) -> None:
    def write() -> None:
        with PairWriter(tmp_path / "a", dtype) as writer:
            writer.append(np.array([1, wrong, 3]))

    limits = np.iinfo(dtype)
    assert told(write) == (
        f"token ids must be in [{limits.min}, {limits.max}] to be stored as {dtype}, but one is {wrong}; "
        "raise model.vocab_size to more than the largest id"
    )


def test_a_document_longer_than_a_sequence_may_be_has_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_module, "LONGEST", 3)
    monkeypatch.setattr(pair_module, "_ITEMS", 2)
    documents = [list(range(8)), [1, 2, 3], [4], list(range(20, 27))]
    shards = shard_set(tmp_path, documents)
    sequences, first = read_sequences(tmp_path / "train-00000")
    assert [len(one) for one in sequences] == [3, 3, 2, 3, 1, 3, 3, 1]
    assert first == [0, 3, 4, 5, 8]
    assert read_documents(tmp_path / "train-00000") == documents
    assert np.flatnonzero(shards.begins(0, 19)).tolist() == [0, 8, 11, 12]


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_stream_of_shards_is_their_tokens_one_behind_the_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "shards"
    of_each = data.draw(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=4))
    kinds = [data.draw(st.sampled_from(["uint16", "int32", "int64"])) for _ in of_each]
    shards, tokens, begins = [], [], []
    for number, (lengths, dtype) in enumerate(zip(of_each, kinds, strict=True)):
        documents = [list(range(100 * number, 100 * number + length)) for length in lengths]
        shards.append(written_shard(folder, documents, number=number, dtype=dtype))
        tokens += [id_ for document in documents for id_ in document]
        begins += [place == 0 for document in documents for place in range(len(document))]
    found = ShardSet(folder, shards)
    assert len(found) == len(tokens)
    if tokens:
        start = data.draw(st.integers(0, len(tokens) - 1))
        count = data.draw(st.integers(1, len(tokens) - start))
        assert found.tokens(start, count).tolist() == tokens[start : start + count]
        assert found.begins(start, count).tolist() == begins[start : start + count]
    for start, count in ((-1, 1), (0, 0), (0, len(tokens) + 1), (len(tokens), 1)):
        with pytest.raises(IndexError, match=rf"tokens must be in \[0, {len(tokens)}\)"):
            found.tokens(start, count)


def test_tokens_of_one_shard_are_a_view_of_the_file(tmp_path: Path) -> None:
    found = shard_set(tmp_path, [range(100)])
    view = found.tokens(10, 20)
    assert np.shares_memory(view, found.tokens(0, 100))
    assert not view.flags.writeable
    with (tmp_path / "train-00000.bin").open("r+b") as file:
        file.seek(2 * 15)
        file.write(b"\x07\x00")
    assert view[5] == 7


def test_shards_are_opened_when_they_are_read(tmp_path: Path) -> None:
    one, two = (written_shard(tmp_path, [[number] * 5], number=number) for number in range(2))
    found = ShardSet(tmp_path, [one, two])
    (tmp_path / "train-00001.bin").unlink()
    assert found.tokens(0, 5).tolist() == [0] * 5
    with pytest.raises(FileNotFoundError):
        found.tokens(4, 2)


def test_an_index_finds_documents_without_reading_the_others(tmp_path: Path) -> None:
    written_shard(tmp_path, [[1] * length for length in (3, 1, 4, 2)])
    index = PairIndex(tmp_path / "train-00000.idx")
    assert (index.dtype, index.sequences) == ("uint16", 4)
    assert index.begins(0, 10).tolist() == [0, 3, 4, 8]
    assert index.begins(1, 3).tolist() == [3]
    assert index.begins(4, 4).tolist() == [4]
    assert index.begins(9, 1).tolist() == []


def test_runs_of_earlier_versions_find_the_content_that_they_began_with(tmp_path: Path) -> None:
    """Written from what those versions did: ids of documents in a file a part, their ends in another."""
    texts = [f"text number {number}" for number in range(60)]
    path = write_text(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    keys = {"data__files": [str(path)], "data__cache_dir": str(tmp_path / "cache"), "tokenizer__kind": "bytes"}
    wanted = config(data__source="files", data__validation_fraction=0.3, data__mask_documents=True, **keys)
    prepared = prepare(wanted)
    hashes: list[list[str]] = [[], []]
    for held_out in (False, True):
        pieces = [text for whole in texts for side, text in split_document(whole, 0.3) if side == held_out]
        ids = [[*text.encode(), 256] for text in pieces]
        files = (
            np.array([id_ for document in ids for id_ in document], "<u2"),
            np.cumsum([len(document) for document in ids]).astype("<i8"),
        )
        for found, one in zip(hashes, files, strict=True):
            found.append(hashlib.blake2b(one.tobytes(), digest_size=16).hexdigest())
    content, ends = ("-".join(found) for found in hashes)
    assert prepared.content == content
    assert prepared.boundaries == ends
    decides = f"{content}:None:{wanted.train.seed}:{ends}:True:keep"
    assert stream_identity(prepared, wanted) == hashlib.blake2b(decides.encode(), digest_size=16).hexdigest()
