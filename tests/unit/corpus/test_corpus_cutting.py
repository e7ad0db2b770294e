"""Units are cut by the input alone, and together they are the input, whatever their size."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.corpus.corpus_fixtures import cut_texts
from tests.unit.data.data_fixtures import files_config, write_text
from trainer.corpus.cutting import cut
from trainer.corpus.document import BadRecord
from trainer.corpus.inputs import input_files
from trainer.corpus.read import documents, read_unit
from trainer.corpus.units import UNIT_BYTES, Compression, InputFile, Kind, Span, Unit

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
TEXTS = st.lists(TEXT, max_size=6)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def text_file(folder: Path, texts: list[str]) -> Path:
    return write_text(folder / "a.txt", "".join(texts))


def packed_text_file(folder: Path, texts: list[str]) -> Path:
    path = folder / "a.txt.gz"
    path.write_bytes(gzip.compress("".join(texts).encode()))
    return path


def json_lines_file(folder: Path, texts: list[str], line_end: str = "\n") -> Path:
    lines = [json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) for text in texts]
    return write_text(folder / "a.jsonl", line_end.join(lines))


def windows_lines_file(folder: Path, texts: list[str]) -> Path:
    return json_lines_file(folder, texts, "\r\n")


def parquet_file(folder: Path, texts: list[str]) -> Path:
    path = folder / "a.parquet"
    pa.parquet.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=2)
    return path


def json_file(folder: Path, texts: list[str]) -> Path:
    return write_text(folder / "a.json", json.dumps([{"text": text} for text in texts], indent=len(texts) % 3 or None))


def csv_file(folder: Path, texts: list[str]) -> Path:
    content = io.StringIO(newline="")
    csv.writer(content).writerows([["id", "text"], *(["1", text] for text in texts)])
    return write_text(folder / "a.csv", content.getvalue())


def arrow_file(folder: Path, texts: list[str]) -> Path:
    table = pa.table({"text": pa.array(texts, pa.string())})
    with pa.ipc.new_stream(str(folder / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return folder / "a.arrow"


def tar_file(folder: Path, texts: list[str]) -> Path:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, text in enumerate(texts):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return folder / "a.tar"


BYTES_MARK = (text_file, packed_text_file, tar_file)
"""Forms in which a byte order mark may stand before a text."""
KINDS = [text_file, packed_text_file, json_lines_file, windows_lines_file, parquet_file]
KINDS += [json_file, csv_file, arrow_file, tar_file]


@pytest.mark.parametrize("write", KINDS)
@given(texts=TEXTS, unit_bytes=st.integers(1, 400), block=st.integers(1, 100))
@MANY
def test_the_units_of_a_file_are_the_file(
    write: Callable[[Path, list[str]], Path], texts: list[str], unit_bytes: int, block: int, tmp_path: Path
) -> None:
    data = files_config(write(tmp_path, texts))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("separated.BLOCK_BYTES", "json_values._BLOCK_BYTES", "json_lines._BLOCK_BYTES"):
            patch.setattr(f"trainer.corpus.{module}", block)
        whole = list(documents(data))
        # A part of a text is kept also where all of the text is blank.
        assert [text for text in cut_texts(data, unit_bytes) if text.strip()] == whole
    expected = ["".join(texts)] if write in (text_file, packed_text_file) else texts
    if write in BYTES_MARK:
        expected = [text.removeprefix("\ufeff") for text in expected]
    assert whole == [text for text in expected if text.strip()]


SEPARATORS = st.sampled_from(["|", "\n\n", "aa", "aba", "<|endoftext|>", "ü"])


@given(data=st.data(), separator=SEPARATORS, unit_bytes=st.integers(1, 40), block=st.integers(1, 20))
@MANY
def test_units_of_a_text_with_separators_are_the_documents_between_them(
    data: st.DataObject, separator: str, unit_bytes: int, block: int, tmp_path: Path
) -> None:
    letters = st.sampled_from([separator, *separator, "a", "b", "ü", "🙂", " ", "\n"])
    content = "".join(data.draw(st.lists(letters, max_size=40)))
    path = write_text(tmp_path / "a.txt", content)
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    expected = [text for text in content.split(separator) if text.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.corpus.separated.BLOCK_BYTES", block)
        for one in (path, packed):
            source = files_config(one, data__document_separator=separator)
            assert list(documents(source)) == expected
            assert [text for text in cut_texts(source, unit_bytes) if text.strip()] == expected


@given(texts=st.lists(TEXT, min_size=1, max_size=9), unit_bytes=st.integers(1, 90), unit_files=st.integers(1, 4))
@MANY
def test_the_units_of_many_files_are_the_files(
    texts: list[str], unit_bytes: int, unit_files: int, tmp_path: Path
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    for number, text in enumerate(texts):
        write_text(tmp_path / f"{number}.txt", text)
    data = files_config(tmp_path / "*.txt")
    assert [text for text in cut_texts(data, unit_bytes, unit_files) if text.strip()] == list(documents(data))


def made(*sizes: int | None, kind: Kind = Kind.json_lines, packed: bool = False) -> list[InputFile]:
    compression = Compression.gz if packed else Compression.none
    return [InputFile(f"/{index}", size, "x", kind, compression) for index, size in enumerate(sizes)]


def spans(units: list[Unit]) -> list[list[tuple[int, int, int | None]]]:
    return [[(span.file, span.first, span.end) for span in unit.spans] for unit in units]


def test_small_files_share_a_unit_up_to_its_bytes_and_its_files() -> None:
    assert spans(list(cut(made(40, 60, 1, 1, 1), 100, 2))) == [
        [(0, 0, None), (1, 0, None)],
        [(2, 0, None), (3, 0, None)],
        [(4, 0, None)],
    ]
    assert spans(list(cut(made(40, 61), 100))) == [[(0, 0, None)], [(1, 0, None)]]
    assert list(cut([])) == []


def test_a_large_file_is_several_units_and_keeps_its_place() -> None:
    assert spans(list(cut(made(5, 250, 5), 100))) == [
        [(0, 0, None)],
        [(1, 0, 100)],
        [(1, 100, 200)],
        [(1, 200, 250)],
        [(2, 0, None)],
    ]


@pytest.mark.parametrize("files", [made(101, kind=Kind.csv), made(26, packed=True), made(None)])
def test_a_large_file_that_cannot_be_entered_in_the_middle_is_fed(files: list[InputFile]) -> None:
    assert list(cut(files, 100)) == [Unit(0, (Span(0, 0, None),), is_fed=True)]
    assert [unit.is_fed for unit in cut(files, None)] == [False]


def test_row_groups_share_a_unit_up_to_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [str(number) * 500 for number in range(9)]})
    pa.parquet.write_table(table, path, row_group_size=2, use_dictionary=False, compression="none")
    files = input_files(files_config(path))
    assert [(unit.spans[0].first, unit.spans[0].end) for unit in cut(files, 5000)] == [(0, 2), (2, 4), (4, 5)]
    assert [(unit.spans[0].first, unit.spans[0].end) for unit in cut(files, 9)] == [(n, n + 1) for n in range(5)]


def test_tables_far_away_and_here_keep_their_row_groups(tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 2), ("c", 3)):
        table = pa.table({"text": [str(number) * 500 for number in range(6)]})
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=size)
    files = input_files(files_config(tmp_path))
    files[1:1] = [replace(files[1], size=None)]
    units = list(cut(files, 9))
    assert [unit.spans[0].file for unit in units] == [*[0] * 6, 1, *[2] * 3, *[3] * 2]
    assert [unit.number for unit in units if unit.is_fed] == [6]


def test_faults_in_the_middle_of_a_file_are_named_by_byte(tmp_path: Path) -> None:
    good = '{"text": "x"}\n'
    path = write_text(tmp_path / "a.jsonl", good * 5 + "broken\n" + good)
    data = files_config(path)
    files = input_files(data)
    bad = [found for unit in cut(files, 40) for found in read_unit(data, files, unit) if isinstance(found, BadRecord)]
    assert [str(record.origin) for record in bad] == [f"byte {5 * len(good)} of {path}"]
    assert bad[0].excerpt == b"broken"


def test_a_damaged_large_table_is_one_unit_that_says_so(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.parquet", "no table" * 9)
    data = files_config(path)
    files = input_files(data)
    units = list(cut(files, 10))
    assert spans(units) == [[(0, 0, None)]]
    (bad,) = read_unit(data, files, units[0])
    assert isinstance(bad, BadRecord)
    assert "is no good parquet file" in bad.problem


def test_a_text_of_several_blocks_is_open_at_the_end_of_its_units(tmp_path: Path) -> None:
    """In their real sizes: units of 16 MiB are read in blocks of 1 MiB."""
    text = "a line of a text\n" * (5 << 18)
    data = files_config(write_text(tmp_path / "a.txt", text))
    assert cut_texts(data, UNIT_BYTES) == [text]


def test_a_part_that_is_no_utf8_is_left_out_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789" + b"ab\xfcdefghij" + b"ABCDEFGHIJ")
    data = files_config(path)
    files = input_files(data)
    found = [list(read_unit(data, files, unit)) for unit in cut(files, 10)]
    bad = found[1][0]
    assert isinstance(bad, BadRecord)
    assert bad.problem == f"data.files must be UTF-8, but {path} is not at byte 12; convert it, for example with iconv"
    assert bad.excerpt.startswith(b"\xfcdef")
