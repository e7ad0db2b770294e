"""Long documents in segments: the tokens of the whole, in bounded memory; copies; and blocks on the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trainer.data.build.segments as segments_module
from tests.helpers.held_out import split_document
from trainer.corpus.document import BadDocument, BadRecord, Document, Origin, Record
from trainer.data.build.duplicates import Duplicates
from trainer.data.build.segments import segments
from trainer.data.build.spool import Item, blocks, read_block, write_block
from trainer.data.build.unit_result import BEGINS, UnitResult, UnitWriter
from trainer.data.split import Fractions, parts_of
from trainer.data.tokenizer import FileTokenizer, train_bpe

ORIGIN = Origin("line", 3, "/x.jsonl")
PROSE = "".join(
    f"line {number} of a long text,  with  spaces\n\n  and more {number * number}\n" for number in range(4000)
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments_module, "SEGMENT_CHARACTERS", 20_000)
    monkeypatch.setattr(segments_module, "LONGEST_CHARACTERS", 60_000)


@settings(deadline=None)
@given(st.text(alphabet="ab\n", max_size=50), st.integers(1, 2000), st.lists(st.integers(1, 20_000), max_size=9))
def test_parts_do_not_depend_on_chunks(text: str, times: int, cuts: list[int]) -> None:
    whole = text * times
    edges = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    chunks = [whole[first:end] for first, end in pairwise(edges)]
    assert list(parts_of(chunks)) == list(parts_of((whole,)))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_a_cut_changes_no_token(fraction: float) -> None:
    tokenizer = train_bpe([PROSE[:100_000]], 400)

    def is_safe(before: str, behind: str) -> bool:
        whole, first, second = tokenizer.encode_arrays([before + behind, before, behind])
        return np.array_equal(whole, np.concatenate((first, second)))

    found: list[tuple[int, list[int]]] = []
    is_within = False
    longest = 0
    for segment in segments((PROSE,), Fractions(fraction), is_safe):
        if not is_within:
            found.append((segment.part, []))
        found[-1][1].extend(tokenizer.encode(segment.text))
        is_within = not segment.ends
        longest = max(longest, len(segment.text))
        assert segment.text_bytes == len(segment.text.encode())
    assert found == [(int(is_out), tokenizer.encode(piece)) for is_out, piece in split_document(PROSE, fraction)]
    assert longest < 30_000


@pytest.mark.usefixtures("small")
def test_a_piece_without_a_safe_cut_is_whole_up_to_a_length() -> None:
    found = list(segments(("x" * 150_000,), Fractions(0.0), lambda _before, _behind: False))
    assert "".join(segment.text for segment in found) == "x" * 150_000
    assert [segment.ends for segment in found] == [False, False, True]
    assert all(60_000 <= len(segment.text) < 60_000 + 8192 + 20_000 for segment in found[:-1])


def test_what_is_noted_is_the_document() -> None:
    digest = hashlib.blake2b()
    chunks = (PROSE[i : i + 777] for i in range(0, len(PROSE), 777))
    list(segments(chunks, Fractions(0.5), lambda _before, _behind: True, digest.update))
    assert digest.digest() == hashlib.blake2b(PROSE.encode()).digest()


def test_the_test_part_is_at_the_other_end() -> None:
    texts = [str(number).encode() for number in range(3000)]
    plain, both = Fractions(0.1), Fractions(0.1, 0.2)
    assert [plain.part_of(text) == 1 for text in texts] == [both.part_of(text) == 1 for text in texts]
    assert 0.17 < sum(both.part_of(text) == 2 for text in texts) / 3000 < 0.23
    assert not any(plain.part_of(text) == 2 for text in texts)


def items() -> Iterator[Item]:
    def broken() -> Iterator[str]:
        yield "good"
        raise BadDocument(BadRecord(ORIGIN, "it is bad", b"\xff"))

    yield Document(ORIGIN, iter(("a\ud800", "b" * 50)), continues=True)
    yield BadRecord(ORIGIN, "no object", b"\x00\xfe")
    yield Record(ORIGIN, {"a": [1, {"b": "ü"}]})
    yield Document(ORIGIN, broken())
    yield Document(ORIGIN, iter(("c",)), is_open=True)


def seen(found: Iterator[Item]) -> list[object]:
    told: list[object] = []
    for item in found:
        if not isinstance(item, Document):
            told.append(item)
            continue
        chunks: list[str] = []
        try:
            chunks.extend(item.chunks)
        except BadDocument as bad:
            told.append(bad.record)
        told.append((item.origin, "".join(chunks), item.continues, item.is_open))
    return told


def test_a_block_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_block(items(), tmp_path / "block")
    assert seen(read_block(tmp_path / "block")) == seen(items())


def test_blocks_are_the_items_in_order(tmp_path: Path) -> None:
    found = []
    for block in blocks(items(), 40):
        write_block(block, tmp_path / "block")
        found.append(seen(read_block(tmp_path / "block")))
    assert [one for block in found for one in block] == seen(items())
    assert len(found) == 2


def test_a_result_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "u000000000.000000"

    def interrupted() -> None:
        with UnitWriter(path, "uint16") as writer:
            writer.add_ids(np.arange(5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with UnitWriter(path, "uint16", has_marks=True) as writer:
        writer.add_ids(np.arange(5), np.ones(5, np.uint8))
        writer.grow_text(9, BEGINS)
        writer.end_piece(2)
        mark = writer.mark()
        writer.add_ids(np.arange(7))
        writer.grow_text(1, BEGINS)
        writer.end_piece(0)
        writer.add_ids(np.arange(7))
        writer.rewind(mark)
        writer.skip(BadRecord(ORIGIN, "bad", b"x"))
    result = UnitResult.open(path)
    assert result is not None
    assert result.ids(1, 5).tolist() == [1, 2, 3, 4]
    assert result.marks(0, 5).tolist() == [1] * 5
    assert (result.lengths().tolist(), result.text_bytes().tolist(), result.parts().tolist()) == ([5], [9], [2])
    assert result.facts.documents == result.facts.skipped == 1
    assert len(list(result.skipped())) == 1
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert UnitResult.open(path) is None


def test_copies_are_those_behind_the_first(tmp_path: Path) -> None:
    def hashes(*numbers: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        found = [np.frombuffer(hashlib.blake2b(bytes([n]), digest_size=16).digest(), np.uint8) for n in numbers]
        return np.array(found, np.uint8).reshape(-1, 16)

    copies = Duplicates(tmp_path)
    copies.add(np.array([1, 2, 3]), hashes(1, 2, 1), is_open=False)
    copies.add(np.array([], np.int64), hashes(), is_open=False)
    # Documents 4 and 6 run over three units, 7 over two: 6 is a copy of 4, and 7 is only its beginning.
    copies.add(np.array([4]), hashes(5), is_open=True)
    copies.add(np.array([4]), hashes(6), is_open=True)
    copies.add(np.array([4, 5, 6]), hashes(7, 2, 5), is_open=True)
    copies.add(np.array([6]), hashes(6), is_open=True)
    copies.add(np.array([6, 7]), hashes(7, 5), is_open=True)
    copies.add(np.array([7]), hashes(6), is_open=False)
    copies.finish()
    assert copies.are_copies(np.arange(8)).tolist() == [False, False, False, True, False, True, True, False]


def test_copies_of_every_bucket_are_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    numbers = draw.integers(0, 3000, 8000)
    digests = [hashlib.blake2b(int(number).to_bytes(4, "little"), digest_size=16).digest() for number in numbers]
    copies = Duplicates(tmp_path)
    for first in range(0, 8000, 1000):
        hashes = np.frombuffer(b"".join(digests[first : first + 1000]), np.uint8).reshape(-1, 16)
        copies.add(np.arange(first + 1, first + 1001), hashes, is_open=False)
    copies.finish()
    _, firsts = np.unique(numbers, return_index=True)
    expected = np.ones(8000, np.bool_)
    expected[firsts] = False
    assert np.array_equal(copies.are_copies(np.arange(1, 8001)), expected)


def test_a_tokenizer_gives_the_same_as_arrays() -> None:
    tokenizer = train_bpe([PROSE[:50_000]], 300)
    assert isinstance(tokenizer, FileTokenizer)
    texts = ["", PROSE[:999], "a\ud800b"]
    assert [ids.tolist() for ids in tokenizer.encode_arrays(texts)] == tokenizer.encode_batch(texts)
