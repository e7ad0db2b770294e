"""Every form of file that holds records, the field in them, and what is no record."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from tests.unit.data.data_fixtures import files_config, told, write_text
from trainer.corpus.cutting import cut
from trainer.corpus.document import BadRecord, Document, EmptyRecord
from trainer.corpus.inputs import input_files
from trainer.corpus.read import documents, read_unit, records


def read(*names: object, **values: object) -> list[str]:
    return list(documents(files_config(*names, **values)))


def found(path: Path, **values: object) -> list[str]:
    """Return the documents of a file and the faults in it, as a run sees them that leaves bad records out."""
    data = files_config(path, **values)
    files = input_files(data)
    lines = []
    for unit in cut(files):
        for one in read_unit(data, files, unit):
            if isinstance(one, BadRecord):
                lines.append(f"BAD {one.origin.what} {one.problem}")
            elif isinstance(one, Document):
                lines.append("".join(one.chunks))
    return lines


def empty(path: Path) -> list[str]:
    """Return the places of a file's empty texts."""
    data = files_config(path, data__document_separator="|")
    files = input_files(data)
    found = [one for unit in cut(files) for one in read_unit(data, files, unit)]
    return [f"{one.origin.what} {one.origin.number}" for one in found if isinstance(one, EmptyRecord)]


def test_empty_texts_are_told_and_blank_lines_are_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", '{"text": ""}\n\n{"text": null}\n{"text": "x"}\n \n{"text": " \\n"}\n')
    write_text(tmp_path / "b.txt", "|x| |\n")
    write_text(tmp_path / "c.csv", "text,id\n,1\n\nx,2\n")
    write_text(tmp_path / "d.txt.gz", "")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b" \n"))
    assert empty(tmp_path / "a.jsonl") == ["line 1", "line 3", "line 6"]
    assert empty(tmp_path / "b.txt") == ["document 1", "document 3", "document 4"]
    assert empty(tmp_path / "c.csv") == ["row 1"]
    assert empty(tmp_path / "d.txt.gz") == ["document 1"]


def test_an_array_of_another_name_is_told(tmp_path: Path) -> None:
    for content in (json.dumps(RECORDS), json.dumps(RECORDS, indent=1)):
        path = write_text(tmp_path / "a.jsonl", content)
        assert found(path)[0] == (
            f"BAD line each line of {path} must be an object, but line 1 begins an array; a file that is one array "
            "must be named .json"
        )


def test_fields_of_an_object_are_told_where_a_text_should_be(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{"text": {"body": "x", "lang": "en"}}]), path)
    assert found(path) == [
        f"BAD row data.text_key=text must be a column of text in {path}, but holds dict; "
        "its fields are named like data.text_key=text.body"
    ]
    assert found(path, data__text_key="text.body") == ["x"]


RECORDS = [{"text": "one"}, {"text": "zwei ü", "n": [1, {"a": "}"}]}, {"text": 'a "b" \\ ['}]
TEXTS = ["one", "zwei ü", 'a "b" \\ [']


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        json.dumps(RECORDS, ensure_ascii=False, indent="\t") + "\n\n",
        "".join(json.dumps(record) + "\n" for record in RECORDS),
        "\ufeff\r\n" + "\r\n".join(json.dumps(record) for record in RECORDS),
        "\ufeff" + json.dumps(RECORDS),
        "\n".join(json.dumps(record, indent=1) for record in RECORDS),
        "[\n" + ",\n".join(json.dumps(record) for record in RECORDS) + "\n]\n",
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_a_json_file_is_an_array_or_records(
    tmp_path: Path, content: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.corpus.json_values._BLOCK_BYTES", block)
    assert read(write_text(tmp_path / "a.json", content)) == TEXTS


@pytest.mark.parametrize("content", ["", " \n", "[]", " [ ] ", "[null, {}]"[:1] + "]"])
def test_a_json_file_without_records(tmp_path: Path, content: str) -> None:
    assert read(write_text(tmp_path / "a.json", content)) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"text": "x"} {"text": "y"}]', "behind record 1: ',' or ']' must follow, but b'{' does"),
        ('[{"text": "x"},]', "behind record 1: a record must follow ',', but ']' does"),
        ('[{"text": "x"},,]', "behind record 1: a record must follow, but b',' does"),
        ('[{"text": "x"}', "behind record 1: the array does not end"),
        ('[{"text": "x"}, {"text": "y"', "behind record 1: the record does not end"),
        ('[{"text": "x"}] x', "behind record 1: nothing may follow the array, but b'x' does"),
    ],
)
def test_an_array_that_is_none(tmp_path: Path, content: str, said: str) -> None:
    path = write_text(tmp_path / "a.json", content)
    expected = f"BAD record data.files must be JSON, but {path} is not {said}; what follows is not read"
    assert found(path) == ["x", expected]


def test_bad_records_of_an_array_are_left_out_one_by_one(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.json", '[{"text": "x"}, {"text": }, 5, {"text": "y"}, {"body": "z"}]')
    assert found(path) == [
        "x",
        f"BAD record each record of data.files must be JSON, but record 2 of {path} is not: Expecting value: line 1 "
        "column 10 (char 9)",
        f"BAD record each record of {path} must be an object with the text in data.text_key=text, but record 3 is int, "
        "no object",
        "y",
        f"BAD record each record of {path} must be an object with the text in data.text_key=text, but record 5 has the "
        "keys body",
    ]


def test_a_broken_line_of_a_json_file_is_one_bad_record(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.json", '{"text": "x"}\n{"text": "y"\n{"text": "z"}\n')
    lines = found(path)
    assert lines[::2] == ["x", "z"]
    assert lines[1].startswith(f"BAD line each line of data.files must be JSON, but line 2 of {path} is not: ")


def test_csv_has_quotes_with_line_ends_and_commas(tmp_path: Path) -> None:
    content = 'id,text\r\n1,"a, ""b""\r\nc"\r\n2,\r\n\r\n3,ü\r\n'
    assert read(write_text(tmp_path / "a.csv", content)) == ['a, "b"\r\nc', "ü"]
    assert read(write_text(tmp_path / "b.csv", "\ufeff" + content)) == ['a, "b"\r\nc', "ü"]
    tabs = "id\ttext\n1\tx, y\n2\t" + '"z\tz"\n'
    assert read(write_text(tmp_path / "c.tsv", tabs)) == ["x, y", "z\tz"]
    assert read(write_text(tmp_path / "d.csv", "text\n" + "x" * 300_000)) == ["x" * 300_000]
    assert read(write_text(tmp_path / "e.csv", "")) == []


def test_a_csv_file_without_the_column(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", "id,body\n1,x\n")
    assert found(path) == [f"BAD file {path} must have the column data.text_key=text, but has id, body"]
    assert found(path, data__text_key="body") == ["x"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    comma = write_text(tmp_path / "a.csv", "text,id,id,text\n1,2,3,4\n")
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    for path in (comma, tmp_path / "b.parquet", arrow(tmp_path / "c.arrow", table, is_file=True)):
        assert found(path) == [
            f"BAD file {path} must have one column data.text_key=text, but has 2 columns of that name"
        ]
    # Names of columns that are not asked for do not matter.
    assert found(write_text(tmp_path / "d.csv", "text,,\nx,,\n")) == ["x"]


def test_a_number_of_too_many_digits(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", '{"text": "a", "n": ' + "1" * 10_000 + "}\n")
    problem = f"each line of data.files must be JSON, but line 1 of {path} is not: a number has more than 4,300 digits"
    assert found(path) == [f"BAD line {problem}"]


def test_bad_rows_of_a_csv_file_are_left_out_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,x\n2\n3,gr\xfcn\n4,"a"b\n5,y\n6,"open\n')
    lines = found(path)
    assert lines[0] == "x"
    assert lines[1] == f"BAD row each row must have 2 values, as the first has, but row 2 of {path} has 1"
    assert (
        lines[2] == f"BAD row data.files must be UTF-8, but {path} is not in row 3; convert it, for example with iconv"
    )
    assert lines[3].startswith(f"BAD row data.files must be rows of csv, but row 4 of {path} is none: ")
    assert lines[4] == "y"
    assert lines[5].startswith(f"BAD row data.files must be rows of csv, but row 6 of {path} is none: ")
    assert len(lines) == 6


def test_a_csv_file_whose_first_row_is_none(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.csv", '"a"b,text\nx,y\n')
    (line,) = found(path)
    assert line.startswith(f"BAD file the first row of {path} must name columns, but does not: ")


def arrow(path: Path, table: pa.Table, is_file: bool) -> Path:
    opened = (pa.ipc.new_file if is_file else pa.ipc.new_stream)(str(path), table.schema)
    with opened as writer:
        writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("is_file", [True, False])
def test_arrow_files_and_streams(tmp_path: Path, is_file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.corpus.tables._ROWS", 1)
    texts = [f"text {number}" for number in range(5)]
    table = pa.table({"id": list(range(5)), "text": pa.array(texts, pa.large_string())})
    path = arrow(tmp_path / "a.arrow", table, is_file)
    assert read(path) == texts
    assert found(path, data__text_key="id")[0] == (
        f"BAD row data.text_key=id must be a column of text in {path}, but holds int"
    )
    packed = tmp_path / "b.arrow.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == texts
    assert found(path, data__text_key="body") == [
        f"BAD file {path} must have the column data.text_key=body, but has id, text"
    ]


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"ARROW1\0\0 nonsense", b"no table at all"])
def test_a_file_that_is_no_arrow(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    (line,) = found(path)
    assert line.startswith(f"BAD file data.files must be readable, but {path} is no good arrow file: ")


def tar(path: Path, members: dict[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_members_of_a_tar_with_one_key_are_a_sample(tmp_path: Path) -> None:
    members = {
        "a/1.txt": b"one",
        "a/1.json": b'{"lang": "en"}',
        "a/1.jpg": b"\xff",
        "a/2.json": b'{"text": "two"}',
        "a/._3.txt": b"of another system",
        "a/3.cap.txt": b"three",
        "b/3.txt": b"four",
        "b/5.json": b'{"text": "five"}',
        "b/5.txt": b"not this one",
    }
    path = tar(tmp_path / "a.tar", members)
    assert read(path) == ["one", "two", "three", "four", "five"]
    assert read(tar(tmp_path / "b.tgz", members, "w:gz")) == read(path)
    assert [line for line in found(path, data__text_key="lang") if "BAD" not in line] == [
        *("en", "three", "four", "not this one")
    ]


def test_bad_members_of_a_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"1.txt": b"gr\xfcn", "2.json": b"{", "3.json": b"{}", "4.txt": b"x"})
    lines = found(path)
    assert lines[0] == (
        f"BAD member data.files must be UTF-8, but {path} is not in member 1; convert it, for example with iconv"
    )
    assert lines[1].startswith(f"BAD member each member of data.files must be JSON, but member 2 of {path} is not: ")
    assert lines[2] == (
        f"BAD member each member of {path} must be an object with the text in data.text_key=text, but member 3 has the "
        "keys none"
    )
    assert lines[3:] == ["x"]


@pytest.mark.parametrize("content", [b"no tar at all", b"x" * 2000])
def test_a_file_that_is_no_tar(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    (line,) = found(path)
    assert line.startswith(f"BAD file data.files must be readable, but {path} is no good tar file: ")


def zstandard(content: bytes) -> bytes:
    half = len(content) // 2
    # Two frames, as files that were put together have.
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (content[:half], content[half:]))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("suffix", PACK)
def test_every_compression_of_every_form(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"text": TEXTS})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    arrow(tmp_path / "a.arrow", table, is_file=True)
    tar(tmp_path / "a.tar", {f"{number}.txt": text.encode() for number, text in enumerate(TEXTS)})
    write_text(tmp_path / "a.json", json.dumps(RECORDS))
    write_text(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in RECORDS))
    write_text(tmp_path / "a.csv", 'text\none\nzwei ü\n"a ""b"" \\ ["\n')
    write_text(tmp_path / "a.txt", "one|zwei ü|" + TEXTS[2])
    for plain in list(tmp_path.iterdir()):
        packed = plain.with_name(f"{plain.name}.{suffix}")
        packed.write_bytes(PACK[suffix](plain.read_bytes()))
        for path in (plain, packed):
            assert read(path, data__document_separator="|") == TEXTS, path


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["other", "truncated", "wrong"])
def test_damage_in_every_compression(tmp_path: Path, suffix: str, damage: str) -> None:
    content = PACK[suffix]("".join(json.dumps({"text": str(number) * 9}) + "\n" for number in range(3000)).encode())
    middle = len(content) // 2
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(
        {
            "other": b"nothing like that",
            "truncated": content[:middle],
            "wrong": content[:middle] + bytes(30) + content[middle + 30 :],
        }[damage]
    )
    assert f"data.files must be readable, but {path} is not: " in found(path)[-1]


@pytest.mark.parametrize("suffix", PACK)
def test_streams_one_behind_the_other(tmp_path: Path, suffix: str) -> None:
    one, two = (PACK[suffix](json.dumps({"text": text}).encode() + b"\n") for text in ("one", "two"))
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(one + two)
    assert read(path) == ["one", "two"]
    # Damage where the second one begins is no end of the file.
    path.write_bytes(one + b"?" + two[1:])
    assert f"data.files must be readable, but {path} is not: " in found(path)[-1]
    path.write_bytes(one + two[:4])
    assert f"data.files must be readable, but {path} is not: " in found(path)[-1]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_zeros_behind_a_stream_are_padding(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(PACK[suffix](b'{"text": "one"}\n') + bytes(512))
    assert read(path) == ["one"]


NESTED = {"meta": {"text": "deep", "parts": ["a", None, "b"]}, "turns": [{"content": "x"}, {"content": "y"}, {}]}


@pytest.mark.parametrize(
    ("key", "joint", "text"),
    [
        ("meta.text", None, "deep"),
        ("meta.parts", "|", "a|b"),
        ("meta.parts", r"\n\t", "a\n\tb"),
        ("turns.content", "", "xy"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet", "arrow"])
def test_a_path_to_the_field(tmp_path: Path, key: str, joint: str | None, text: str, form: str) -> None:
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        write_text(path, json.dumps(NESTED))
    elif form == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist([NESTED]), path)
    else:
        arrow(path, pa.Table.from_pylist([NESTED]), is_file=True)
    assert read(path, data__text_key=key, data__text_join=joint) == [text]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_field_of_that_very_name_wins(tmp_path: Path, form: str) -> None:
    record = {"a.b": "literal", "a": {"b": "path", "c.d": {"e": "mixed"}}}
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        write_text(path, json.dumps(record))
    else:
        pa.parquet.write_table(pa.Table.from_pylist([record]), path)
    assert read(path, data__text_key="a.b") == ["literal"]
    assert read(path, data__text_key="a.c.d.e") == ["mixed"]


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", '{"a": {"c": 1}}\n{"a": null}\n{"a": {"b": null}}\n{"a": [1]}\n')
    each = f"BAD line each line of {path} must be an object with the text in data.text_key=a.b, but line"
    more = ", whose items data.text_join would join"
    assert found(path, data__text_key="a.b") == [f"{each} 1 has the keys a", f"{each} 4 has list there{more}"]


def test_texts_of_bytes_are_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": pa.array(["ü".encode(), b"gr\xfcn", None, b"x"], pa.binary())}), path)
    assert found(path) == [
        "ü",
        f"BAD row data.files must be UTF-8, but {path} is not in row 2; convert it, for example with iconv",
        "x",
    ]


def test_records_of_every_form(tmp_path: Path) -> None:
    held = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    write_text(tmp_path / "a.json", json.dumps(held))
    write_text(tmp_path / "b.csv", "prompt,completion\na,b\nc,d\n")
    arrow(tmp_path / "c.arrow", pa.Table.from_pylist(held), is_file=False)
    tar(tmp_path / "d.tar", {f"{number}.json": json.dumps(one).encode() for number, one in enumerate(held)})
    keys = {"data.prompt_key": "prompt"}
    data = files_config(tmp_path, data__records="prompt_completion")
    assert [dict(record.fields) for record in records(data, keys)] == held * 4
    assert str(next(records(data, keys)).origin) == f"record 1 of {tmp_path}/a.json"
    missing = files_config(tmp_path / "b.csv", data__records="prompt_completion")
    assert told(lambda: list(records(missing, {"data.prompt_key": "body"}))) == (
        f"{tmp_path}/b.csv must have the column data.prompt_key=body, but has prompt, completion"
    )


def test_text_files_hold_no_records(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "x")
    data = files_config(path, data__records="messages")
    assert told(lambda: list(records(data, {}))) == (
        f"data.files must hold objects for data.records=messages, as .jsonl and .parquet do, but {path} is text"
    )
