from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.held_out import is_held_out
from tests.helpers.megatron_reader import read_documents
from tests.unit.data.data_fixtures import config, stream, told
from trainer.config.schema import TridentConfig
from trainer.data.megatron import megatron_pairs
from trainer.data.prepare import prepare
from trainer.data.ready_made import ready_made_pieces, token_sources
from trainer.data.tokenizer import load_tokenizer

CODES = {"u1": 1, "i1": 2, "i2": 3, "i4": 4, "i8": 5, "u2": 8}
said: list[str] = []
SEQUENCES = [[1, 2, 3], [4], [], [5, 6, 7, 8], [99, 0]]


def write_pair(
    prefix: Path,
    sequences: Sequence[Sequence[int]] = SEQUENCES,
    dtype: str = "u2",
    *,
    magic: bytes = b"MMIDIDX\x00\x00",
    version: int = 1,
    code: int | None = None,
    offsets: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    documents: Sequence[int] | None = None,
) -> Path:
    """Write what Megatron's `MMapIndexedDatasetBuilder` writes, for one sequence a document unless told otherwise."""
    arrays = [np.array(sequence, dtype=f"<{dtype}") for sequence in sequences]
    sizes = [len(array) for array in arrays] if sizes is None else sizes
    starts = np.cumsum([0, *(array.nbytes for array in arrays[:-1])]).tolist()
    first = list(range(len(arrays) + 1)) if documents is None else documents
    header = struct.pack("<QBQQ", version, CODES[dtype] if code is None else code, len(arrays), len(first))
    index = magic + header + np.array(sizes, "<i4").tobytes()
    index += np.array(starts if offsets is None else offsets, "<i8").tobytes()
    index += np.array(first, "<i8").tobytes()
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    prefix.with_name(prefix.name + ".bin").write_bytes(b"".join(array.tobytes() for array in arrays))
    return prefix


def read(*prefixes: object, **values: object) -> list[list[int]]:
    keys = {"model__vocab_size": 1 << 63, "data__source": "megatron", "data__files": [str(one) for one in prefixes]}
    wanted = config(**(keys | values))
    return [tokens.tolist() for _, tokens in ready_made_pieces(wanted, token_sources(wanted, None, said.append))]


def whole_config(prefix: Path, **values: object) -> TridentConfig:
    keys = {"data__cache_dir": str(prefix.parent / "cache"), "model__vocab_size": 100, "data__validation_fraction": 0}
    return config(data__source="megatron", **({"data__files": [str(prefix)]} | keys | values))


@pytest.mark.parametrize("dtype", list(CODES))
def test_every_integer_type_is_read(tmp_path: Path, dtype: str) -> None:
    largest = int(np.iinfo(dtype).max)
    prefix = write_pair(tmp_path / "a_document", [[1, 2, largest], [], [3]], dtype)
    assert read(prefix) == [[1, 2, largest], [3]]


def test_prefixes_are_read_in_the_order_given_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    first, second = write_pair(tmp_path / "b", [[1]]), write_pair(tmp_path / "a.v2", [[2]])
    assert read(first, second) == [[1], [2]]
    assert read("b.bin", "./b.idx", str(first), "~/a.v2") == [[1], [2]]
    assert len(megatron_pairs(("b", "b.bin", "b.idx"))) == 1


def test_max_documents_counts_sequences_that_are_not_empty(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a")
    assert read(prefix, data__max_documents=3) == [[1, 2, 3], [4], [5, 6, 7, 8]]
    prepared = prepare(whole_config(prefix, data__max_documents=2))
    assert stream(prepared).tolist() == [1, 2, 3, 4]


def test_a_longer_index_is_fine(tmp_path: Path) -> None:
    """Some versions write the mode of each sequence behind the rest."""
    prefix = write_pair(tmp_path / "a")
    with (tmp_path / "a.idx").open("ab") as file:
        file.write(b"\x01" * 5)
    assert read(prefix) == [sequence for sequence in SEQUENCES if sequence]


def test_sequences_may_lie_anywhere(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a", [[1, 2], [3], [4]], offsets=[4, 0, 2])
    assert read(prefix) == [[3, 4], [1], [2]]


def test_tokens_are_taken_over_and_split_by_sequence(tmp_path: Path) -> None:
    sequences = [[number % 90, number // 90, 99] for number in range(500)]
    prepared = prepare(whole_config(write_pair(tmp_path / "a", sequences), data__validation_fraction=0.1))
    sides: dict[bool, list[int]] = {True: [], False: []}
    for sequence in sequences:
        sides[is_held_out(np.array(sequence, np.int64).tobytes().hex(), 0.1)] += sequence
    assert stream(prepared).tolist() == sides[False]
    assert stream(prepared, "validation").tolist() == sides[True] != []
    assert prepared.tokenizer_folder is None
    assert prepared.vocab_size == 100


def test_large_ids_take_four_bytes(tmp_path: Path) -> None:
    prepared = prepare(whole_config(write_pair(tmp_path / "a", [[70_000, 1]], "i4"), model__vocab_size=70_001))
    assert stream(prepared).tolist() == [70_000, 1]


def test_the_tokenizer_that_made_the_ids_travels_with_the_run(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "far": 98}, unk_token="[UNK]"))
    made.add_special_tokens(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    prefix = write_pair(tmp_path / "a", [[98, 2]])
    values = {"tokenizer__kind": "pretrained", "tokenizer__path": str(tmp_path / "tokenizer.json")}
    prepared = prepare(whole_config(prefix, model__vocab_size=99, **values))
    assert prepared.tokenizer_folder is not None
    assert load_tokenizer(prepared.tokenizer_folder).decode(stream(prepared).tolist()) == "far"
    assert told(lambda: prepare(whole_config(prefix, model__vocab_size=200, **values))).startswith(
        "model.vocab_size (200) must not exceed the tokenizer's range (99)"
    )


@pytest.mark.parametrize(
    ("dtype", "wrong", "limit"), [("i4", 100, 100), ("i4", -1, 100), ("i1", -128, 100), ("u2", 7, 7)]
)
def test_ids_out_of_range(tmp_path: Path, dtype: str, wrong: int, limit: int) -> None:
    prefix = write_pair(tmp_path / "a", [[1, 2], [3, wrong, 4]], dtype)
    assert told(lambda: prepare(whole_config(prefix, model__vocab_size=limit))) == (
        f"token ids of data.files must be in [0, model.vocab_size ({limit})), but token 3 of {prefix}.bin is {wrong}; "
        "set model.vocab_size to that of the tokenizer that made them"
    )


def test_ids_are_checked_against_a_smaller_vocabulary_too(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a")
    prepare(whole_config(prefix))
    assert "a.bin is 99;" in told(lambda: prepare(whole_config(prefix, model__vocab_size=50)))


def test_changed_data_are_read_again(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a")
    prepare(whole_config(prefix))
    write_pair(prefix, [[9, 9]])
    assert stream(prepare(whole_config(prefix))).tolist() == [9, 9]


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]])
def test_no_tokens(tmp_path: Path, sequences: list[list[int]]) -> None:
    prefix = write_pair(tmp_path / "a", sequences, offsets=[0] * len(sequences))
    expected = "data.files must give at least one document to train on, but gave none"
    assert told(lambda: prepare(whole_config(prefix))) == expected


def test_nothing_named() -> None:
    expected = "data.source=megatron needs at least one .bin/.idx prefix in data.files, but it is empty"
    assert told(lambda: read()) == expected


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_half_a_pair(tmp_path: Path, suffix: str, is_folder: bool) -> None:
    prefix = write_pair(tmp_path / "a")
    path = tmp_path / f"a{suffix}"
    path.unlink()
    if is_folder:
        path.mkdir()
    assert told(lambda: read(prefix)) == f"data.files must name prefixes of .bin/.idx pairs, but {path} is missing"


@pytest.mark.parametrize("magic", [b"TNTIDX\x00\x00\x00", b"MMIDIDX\x00\x01", b"PK\x03\x04 a zip"])
def test_a_wrong_magic(tmp_path: Path, magic: bytes) -> None:
    prefix = write_pair(tmp_path / "a", magic=magic)
    expected = f"data.files: {prefix}.idx must be a Megatron index (MMIDIDX), but does not begin like one"
    assert told(lambda: read(prefix)) == expected


@pytest.mark.parametrize(("version", "code"), [(2, 8), (0, 8), (1, 6), (1, 7), (1, 0), (1, 255)])
def test_another_version_or_type(tmp_path: Path, version: int, code: int) -> None:
    prefix = write_pair(tmp_path / "a", version=version, code=code)
    assert told(lambda: read(prefix)) == (
        f"data.files: {prefix}.idx must have version 1 and integer tokens, but has version {version} and type {code}"
    )


@pytest.mark.parametrize("length", [0, 8, 9, 33, 34, 60, -1])
def test_a_truncated_index(tmp_path: Path, length: int) -> None:
    prefix = write_pair(tmp_path / "a")
    index = tmp_path / "a.idx"
    whole = index.stat().st_size
    os.truncate(index, length % whole)
    message = told(lambda: read(prefix))
    if length in (0, 8):
        assert message.endswith("must be a Megatron index (MMIDIDX), but does not begin like one")
    else:
        least = "at least 34" if length < 34 and length >= 0 else str(whole)
        found = length % whole
        assert message == f"data.files: {index} must have {least} bytes, but has {found}: it is truncated"


@pytest.mark.parametrize("length", [0, 1, 19])
def test_truncated_data(tmp_path: Path, length: int) -> None:
    prefix = write_pair(tmp_path / "a")
    os.truncate(tmp_path / "a.bin", length)
    expected = (
        f"data.files: {prefix}.bin must have 20 bytes by its index, but has {length}: it is truncated, or the index is "
        "another file's"
    )
    assert told(lambda: read(prefix)) == expected


def test_the_index_of_another_file(tmp_path: Path) -> None:
    prefix, other = write_pair(tmp_path / "a"), write_pair(tmp_path / "b", [[1, 2], [3]])
    os.replace(f"{other}.idx", f"{prefix}.idx")
    assert told(lambda: read(prefix)) == (
        f"data.files: {prefix}.bin must have 6 bytes by its index, but has 20: it is longer, or the index is another "
        "file's"
    )
    write_pair(prefix, [[1, 2], [3, 4]], "i4", offsets=[0, 6], sizes=[2, 2])
    assert told(lambda: read(prefix)) == (
        f"data.files: {prefix}.idx must hold offsets that are multiples of an id's 4 bytes, but does not: it is "
        "damaged or belongs to another file"
    )


@pytest.mark.parametrize(
    ("sizes", "offsets"), [([2, -1], [0, 4]), ([2, 1], [-2, 4]), ([2, 1], [0, 2**63 - 1]), ([-1, -1], [4, 8])]
)
def test_an_index_with_negative_numbers(tmp_path: Path, sizes: list[int], offsets: list[int]) -> None:
    prefix = write_pair(tmp_path / "a", [[1, 2], [3]], sizes=sizes, offsets=offsets)
    expected = f"data.files: {prefix}.idx must hold sizes and offsets of at least 0, but holds negative ones"
    assert told(lambda: read(prefix)) == expected


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_pair(tmp_path / "a")

    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert told(lambda: read(prefix)) == f"data.files must be readable, but {prefix}: [Errno 13] Permission denied"


def test_tokens_are_read_where_they_lie(tmp_path: Path) -> None:
    """Nothing is copied: what is in the cache says which tokens are whose."""
    prefix = write_pair(tmp_path / "a", [[1, 2, 3], [4], [5, 6, 7, 8]], "i4")
    prepared = prepare(whole_config(prefix))
    (shard,) = prepared.manifest.parts["train"]
    assert shard.name == f"{prefix}.bin"
    assert (shard.dtype, shard.tokens, shard.documents, shard.largest_id, shard.boundaries) == ("int32", 8, 3, 8, "idx")
    assert [path.name for path in prepared.folder.iterdir()] == ["manifest.json"]
    assert np.flatnonzero(prepared.shards("train").begins(0, 8)).tolist() == [0, 3, 4]
    assert prepared.shards("train").tokens(2, 5).base is not None


def test_the_content_is_that_of_the_copy_which_earlier_versions_made(tmp_path: Path) -> None:
    sequences = [[number % 90, number // 90, 99] for number in range(500)]
    for dtype in ("u2", "i8"):
        prefix = write_pair(tmp_path / dtype, sequences, dtype)
        prepared = prepare(whole_config(prefix, data__validation_fraction=0.1, data__mask_documents=True))
        sides: dict[bool, list[int]] = {True: [], False: []}
        for sequence in sequences:
            sides[is_held_out(np.array(sequence, np.int64).tobytes().hex(), 0.1)] += sequence
        ids = [hashlib.blake2b(np.array(sides[side], "<u2").tobytes(), digest_size=16) for side in (False, True)]
        assert prepared.content == "-".join(found.hexdigest() for found in ids)
        ends = [np.arange(3, len(sides[side]) + 1, 3).astype("<i8").tobytes() for side in (False, True)]
        assert prepared.boundaries == "-".join(hashlib.blake2b(one, digest_size=16).hexdigest() for one in ends)


def test_a_document_has_the_sequences_that_the_index_says(tmp_path: Path) -> None:
    sequences = [[1, 2], [3], [], [4, 5], [6], [], [7]]
    prefix = write_pair(tmp_path / "a", sequences, documents=[0, 2, 3, 3, 6, 7, 7])
    assert read(prefix) == [[1, 2, 3], [4, 5, 6], [7]]
    assert said == []
    shards = prepare(whole_config(prefix)).shards("train")
    assert np.flatnonzero(shards.begins(0, 7)).tolist() == [0, 3, 6]
    assert read(prefix, data__max_documents=2) == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize("documents", [[0, 1, 2], [0, 2, 1, 4], [1, 4], [], [0, 2, 0, 2]])
def test_a_document_index_that_merging_broke_is_told_and_sequences_are_documents(
    tmp_path: Path, documents: list[int]
) -> None:
    prefix = write_pair(tmp_path / "a", [[1, 2], [3], [4, 5], [6]], documents=documents)
    said.clear()
    assert read(prefix) == [[1, 2], [3], [4, 5], [6]]
    assert said == [f"the document index of {prefix}.idx is not one of its 4 sequences: each is a document"]
    shards = prepare(whole_config(prefix)).shards("train")
    assert np.flatnonzero(shards.begins(0, 6)).tolist() == [0, 2, 3, 5]
    said.clear()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_pair_gives_the_documents_that_another_reader_finds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    expected: dict[bool, list[list[int]]] = {False: [], True: []}
    prefixes = []
    for number in range(data.draw(st.integers(1, 3))):
        sizes = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
        order = data.draw(st.permutations(range(len(sizes))))
        ids = iter(range(100 * number, 100 * number + 99))
        sequences = [[next(ids) for _ in range(size)] for size in sizes]
        places = np.cumsum([0, *(2 * sizes[one] for one in order)]).tolist()
        offsets = [places[order.index(one)] for one in range(len(sizes))]
        cuts = sorted(data.draw(st.lists(st.integers(0, len(sizes)), max_size=4)))
        prefix = write_pair(folder / f"p{number}", sequences, offsets=offsets, documents=[0, *cuts, len(sizes)])
        content = b"".join(np.array(sequences[one], "<u2").tobytes() for one in order)
        Path(f"{prefix}.bin").write_bytes(content)
        prefixes.append(str(prefix))
        for document in filter(None, read_documents(prefix)):
            expected[is_held_out(np.array(document, np.int64).tobytes().hex(), 0.4)].append(document)
    if not expected[False]:
        return
    wanted = whole_config(Path(prefixes[0]), data__files=prefixes, model__vocab_size=400, data__validation_fraction=0.4)
    prepared = prepare(wanted)
    for is_validation, part in ((False, "train"), (True, "validation")):
        shards, documents = prepared.shards(part), expected[is_validation]
        flat = [id_ for document in documents for id_ in document]
        assert len(shards) == len(flat)
        if flat:
            start = data.draw(st.integers(0, len(flat) - 1))
            count = data.draw(st.integers(1, len(flat) - start))
            assert shards.tokens(start, count).tolist() == flat[start : start + count]
            begins = np.cumsum([0, *(len(document) for document in documents[:-1])]) - start
            found = np.flatnonzero(shards.begins(start, count)).tolist()
            assert found == [place for place in begins.tolist() if 0 <= place < count]


def test_a_test_part_is_kept_apart_and_moves_nothing_else(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "a", [[number % 90, number // 90, 99] for number in range(500)])
    keys = {"data__validation_fraction": 0.1}
    before, after = (prepare(whole_config(prefix, data__test_fraction=share, **keys)) for share in (0.0, 0.2))
    assert stream(after, "validation").tolist() == stream(before, "validation").tolist()
    assert len(stream(after)) + len(stream(after, "test")) == len(stream(before))
    assert 200 < len(stream(after, "test")) < 400
