"""The documents of shards and files, whole and as a sample."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainer.config.schema import TokenizerConfig, TokenizerKind, TridentConfig
from trainer.data.megatron_pair import PairWriter
from trainer.errors import DataError
from trainer.inspection import text_source, token_source
from trainer.inspection.find import find
from trainer.inspection.inspected import Report, inspect
from trainer.inspection.seen import SeenDocument, Source
from trainer.inspection.text_source import TextSource
from trainer.inspection.token_source import TokenSource

BYTES = TridentConfig(tokenizer=TokenizerConfig(kind=TokenizerKind.bytes))
PLAIN = TridentConfig()


def write_pair(prefix: Path, documents: Sequence[Sequence[int]], dtype: str = "uint16") -> Path:
    with PairWriter(prefix, dtype) as writer:
        for document in documents:
            writer.append(np.array(document))
    return prefix


def write_lines(path: Path, texts: Sequence[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return path


def look(path: Path, config: TridentConfig = PLAIN, *, everything: bool = False, seed: int = 0) -> Report:
    return inspect(find(str(path), config), 2, everything, seed)


@contextmanager
def sampled(monkeypatch: pytest.MonkeyPatch, tokens: int = 0, content: int = 0) -> Iterator[None]:
    """Sources whose samples are small."""
    with monkeypatch.context() as patch:
        defaults = TokenSource.__init__.__defaults__, TextSource.__init__.__defaults__
        patch.setattr(TokenSource.__init__, "__defaults__", (tokens,) if tokens else defaults[0])
        patch.setattr(TextSource.__init__, "__defaults__", (content,) if content else defaults[1])
        patch.setattr(token_source, "STRETCH", 64)
        patch.setattr(text_source, "UNIT_BYTES", 512)
        yield


def seen(source: Source, everything: bool = True, seed: int = 0) -> list[SeenDocument]:
    return list(source.documents(everything, seed))


def test_all_documents_of_a_pair_with_their_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [[*range(i % 90 + 1)] for i in range(100)]
    prefix = write_pair(tmp_path / "pair", documents)
    for stretch in (1, 7, 64, 1 << 16):
        monkeypatch.setattr(token_source, "STRETCH", stretch)
        found = seen(find(str(prefix), PLAIN).source)
        assert [one.ids.tolist() for one in found if one.ids is not None] == documents
        assert [one.tokens for one in found] == [len(document) for document in documents]
    assert len({one.hash for one in found}) == 90


def test_a_sample_of_tokens_says_so_and_is_without_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A document's chance must not grow with its length: one in ten is twenty times as long.
    documents = [[i % 7] * (100 if i % 10 == 0 else 5) for i in range(4000)]
    prefix = write_pair(tmp_path / "pair", documents)
    with sampled(monkeypatch, tokens=8000):
        reports = [look(prefix, seed=seed) for seed in range(12)]
    assert all(report.is_sampled and report.documents < 1200 for report in reports)
    found = np.mean([report.lengths.mean for report in reports])
    # Of about 500 documents a report the mean has a standard error of 1.3, so 0.4 over all; five of them.
    assert found == pytest.approx(14.5, abs=2.0)
    assert reports[0].whole_documents == 4000


def test_the_same_seed_gives_the_same_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_pair(tmp_path / "pair", [[i % 500] * 9 for i in range(3000)])
    with sampled(monkeypatch, tokens=2000):
        first, again, other = (look(prefix, seed=seed).to_dict() for seed in (1, 1, 2))
        whole = look(prefix, everything=True)
    assert first == again
    assert first != other
    assert (whole.is_sampled, whole.documents) == (False, 3000)


def test_one_document_longer_than_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_pair(tmp_path / "pair", [[3] * 20_000])
    with sampled(monkeypatch, tokens=1000):
        report = look(prefix)
    assert (report.documents, report.lengths.longest) == (1, 20_000)


def test_texts_of_lines(tmp_path: Path) -> None:
    texts = [f"text {i} é" for i in range(50)] + ["text 3 é"]
    report = look(write_lines(tmp_path / "x.jsonl", texts), BYTES)
    assert (report.documents, report.is_sampled, report.estimated_documents) == (51, False, 51)
    assert report.lengths.longest == len("text 10 é".encode())
    assert report.copies.copies == 1
    assert report.bytes_per_token == 1
    assert report.vocabulary is not None
    assert report.vocabulary.special[0].token == "<|endoftext|>"


def test_lines_of_a_sample_are_whole_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "x.jsonl", [f"{i:05d} " * (i % 9 + 1) for i in range(2000)])
    with sampled(monkeypatch, content=8000):
        report = look(path)
        again = look(path)
    assert report.is_sampled
    assert report.pieces == 0
    assert 100 < report.documents < 400
    # The number is known to the noise of 16 units of 512 bytes, in which lines of 20 to 70 bytes begin.
    assert report.estimated_documents == pytest.approx(2000, rel=0.25)
    assert report.to_dict() == again.to_dict()


def test_a_long_text_is_seen_in_pieces_and_with_all_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("0123456789é\n" * 1000)
    with sampled(monkeypatch, content=8000):
        report = look(path, BYTES)
        whole = look(path, BYTES, everything=True)
    assert (report.documents, report.whole_documents) == (0, 1)
    assert report.pieces >= 2
    assert (whole.documents, whole.pieces, whole.lengths.longest) == (1, 0, 13_000)


def test_a_text_longer_than_what_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_source, "BEGINNING", 100)
    path = tmp_path / "x.txt"
    path.write_text("0123456789\n" * 1000)
    report = look(path, BYTES, everything=True)
    assert (report.lengths.longest, report.tokens, report.text_bytes) == (11_000, 11_000, 11_000)


def test_a_packed_file_is_read_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": f"{i:09d}"}) + "\n" for i in range(5000)).encode()))
    with sampled(monkeypatch, content=4000):
        report = look(path)
    assert report.is_sampled
    assert 0 < report.documents < 2000
    assert report.whole_documents is None


def test_a_folder_is_shown_by_its_folders(tmp_path: Path) -> None:
    for name, count in (("web", 30), ("books", 10)):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "x.jsonl", ["1234567890"] * count)
    assert look(tmp_path).shares == (("web", 0.75), ("books", 0.25))


def test_records_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "good"}\n{"text": \n[]\n{"text": ""}\n{"text": "also good"}\n')
    report = look(path)
    assert (report.documents, report.fault_count, report.empty) == (2, 2, 1)
    assert "must be JSON" in report.faults[0]


def test_damaged_pairs_are_refused_in_one_line(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "pair", [[1, 2, 3], [4, 5]])
    ids = tmp_path / "pair.bin"
    ids.write_bytes(ids.read_bytes()[:-2])
    with pytest.raises(DataError) as caught:
        find(str(prefix), PLAIN)
    assert str(caught.value).startswith(f"PATH must be whole: {ids} must have 10 bytes by its index, but has 8")


def test_a_pair_with_gaps_between_its_sequences(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "pair", [[1, 2, 3], [4, 5]])
    ids, index = tmp_path / "pair.bin", tmp_path / "pair.idx"
    held = bytearray(index.read_bytes())
    held[50:58] = (8).to_bytes(8, "little")
    index.write_bytes(held)
    ids.write_bytes(np.array([1, 2, 3, 9, 4, 5], "<u2").tobytes())
    found = seen(find(str(prefix), PLAIN).source)
    # What no sequence has belongs to the document before it.
    assert [one.ids.tolist() for one in found if one.ids is not None] == [[1, 2, 3, 9], [4, 5]]


def test_ids_of_other_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [[5, 6, 0], [7, 0], [8, 9, 10, 0]] * 100
    path = tmp_path / "train.bin"
    path.write_bytes(np.array([id_ for document in documents for id_ in document], "<u2").tobytes())
    config = replace(PLAIN, data=replace(PLAIN.data, eos_id=0))
    for stretch in (1, 5, 1 << 16):
        monkeypatch.setattr(token_source, "STRETCH", stretch)
        found = seen(find(str(path), config).source)
        assert [one.ids.tolist() for one in found if one.ids is not None] == documents
    report = look(path, config)
    assert (report.whole_documents, report.facts.documents, report.copies.copies) == (300, None, 297)
    with sampled(monkeypatch, tokens=400):
        report = look(path, config)
    # 6 of 15 stretches, in each of which 20 to 22 documents begin.
    assert report.whole_documents == pytest.approx(300, rel=0.05)
    whole = look(path)
    assert (whole.documents, whole.lengths.longest) == (1, 900)


def test_ids_with_an_index_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "x.ds"
    path.write_bytes(np.arange(10, dtype="<u2").tobytes())
    Path(f"{path}.index").write_bytes(np.array([4, 10], "<u8").tobytes())
    for place in (path, tmp_path):
        report = look(place)
        assert (report.facts.kind, report.facts.documents) == ("files of tokens", 2)
        assert (report.lengths.longest, report.documents) == (6, 2)


def test_an_empty_pair_is_refused(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "pair", [])
    with pytest.raises(DataError) as caught:
        find(str(prefix), PLAIN)
    assert str(caught.value) == f"PATH must hold at least one token, but {prefix} holds none"
