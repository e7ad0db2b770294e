from __future__ import annotations

import json

import pytest

from trainer.corpus.document import EXCERPT_BYTES, BadRecord, Document, Origin
from trainer.corpus.units import Compression, InputFile, Kind
from trainer.errors import DataError


def test_an_origin_reads_as_errors_name_it() -> None:
    assert str(Origin("line", 3, "x.jsonl")) == "line 3 of x.jsonl"
    assert str(Origin("file", 0, "x.txt")) == "x.txt"


def test_a_document_that_was_read_whole_is_one_closed_chunk() -> None:
    document = Document.of(Origin("file", 0, "x.txt"), "text")
    assert list(document.chunks) == ["text"]
    assert not document.continues
    assert not document.is_open


def test_a_bad_record_is_an_error_or_a_line_of_what_was_skipped() -> None:
    bad = BadRecord(Origin("line", 3, "x.jsonl"), "it must be JSON, but is not", b"\xff" + b"a" * EXCERPT_BYTES)
    error = bad.error()
    assert isinstance(error, DataError)
    assert str(error) == "it must be JSON, but is not"
    assert error.hints == ("data.on_bad_record=skip leaves such records out, and lists them",)
    line = json.loads(json.dumps(bad.to_dict()))
    assert line["where"] == "line 3 of x.jsonl"
    assert line["why"] == "it must be JSON, but is not"
    assert line["excerpt"] == "\ufffd" + "a" * (EXCERPT_BYTES - 1)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("compression", Compression)
def test_only_plain_lines_and_tables_of_row_groups_are_divisible(kind: Kind, compression: Compression) -> None:
    file = InputFile("/x", 1, "x", kind, compression)
    divisible = kind in (Kind.text, Kind.json_lines, Kind.parquet) and compression is Compression.none
    assert file.is_divisible == divisible
