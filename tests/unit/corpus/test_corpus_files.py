from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.unit.data.data_fixtures import files_config, told, write_text
from trainer.config.schema import DataConfig
from trainer.corpus.inputs import file_identity, identity, input_files
from trainer.corpus.read import documents
from trainer.errors import ConfigError


def read(config: DataConfig) -> list[str]:
    return list(documents(config))


def parquet(path: Path, values: list[Any], kind: Any = None, key: str = "text", **options: Any) -> Path:
    table = pa.table({"id": pa.array(range(len(values))), key: pa.array(values, type=kind)})
    pa.parquet.write_table(table, path, **options)
    return path


def with_column_type(path: Path, kind: Any) -> Path:
    table = pa.parquet.read_table(path)
    column = table["text"].combine_chunks()
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    pa.parquet.write_table(table.set_column(1, "text", column), path)
    return path


def jsonl(path: Path, *lines: object) -> Path:
    return write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def test_a_text_file_is_a_document_as_it_is(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "Zeile 1\r\n\nπ 🙂\n")
    assert read(files_config(path)) == ["Zeile 1\r\n\nπ 🙂\n"]


def test_every_kind_is_read_in_the_order_of_the_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"drei"))
    jsonl(tmp_path / "c.jsonl", {"text": "vier"}, {"text": "fünf", "other": 1})
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "six"}\n'))
    parquet(tmp_path / "e.parquet", ["seven", "eight"])
    write_text(tmp_path / "a.txt", "zwei")
    assert read(files_config(tmp_path / "*")) == ["zwei", "drei", "vier", "fünf", "six", "seven", "eight"]


def test_files_are_sorted_and_each_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [write_text(tmp_path / name, name) for name in ("a.txt", "b.txt", "sub/c.txt")]
    (tmp_path / "z.txt").symlink_to("a.txt")
    names = ["sub/../sub/c.txt", "b.txt", "./b.txt", str(tmp_path / "b.txt"), "**/*.txt", "z.txt"]
    found = input_files(files_config(*names))
    assert [Path(file.path).resolve() for file in found] == paths
    assert [file.path for file in found[:2]] == [str(path) for path in paths[:2]]


def test_a_home_folder_and_a_name_with_brackets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text(tmp_path / "part[1].txt", "one")
    write_text(tmp_path / "part1.txt", "wrong")
    assert read(files_config("~/part[1].txt")) == ["one"]
    with pytest.raises(ConfigError, match="there is no home folder of a user 'nobody-of-this-name'"):
        input_files(files_config("~nobody-of-this-name/a.txt"))


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "")
    write_text(tmp_path / "b.txt", " \n\t")
    write_text(tmp_path / "c.jsonl", '{"text": ""}\n\n  \n{"text": "x"}\n{"text": null}\n')
    parquet(tmp_path / "d.parquet", [None, "", "y"], pa.string())
    assert read(files_config(tmp_path / "*")) == ["x", "y"]


def test_max_documents_counts_documents_that_are_not_blank(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"text": text} for text in ("", "a", "b", "c")))
    assert read(files_config(path, data__max_documents=2)) == ["a", "b"]
    assert read(files_config(path, data__max_documents=9)) == ["a", "b", "c"]


def test_text_key_chooses_the_field(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"body": "x", "text": "no"})
    parquet(tmp_path / "b.parquet", ["y"], key="body")
    assert read(files_config(tmp_path / "*", data__text_key="body")) == ["x", "y"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfx")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "y"}\r\n{"text": "z"}')
    assert read(files_config(tmp_path / "*")) == ["x", "y", "z"]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_text_type_of_parquet_is_read(tmp_path: Path, kind: str) -> None:
    path = parquet(tmp_path / "a.parquet", ["x", None, "yé"], pa.string())
    wanted = pa.dictionary(pa.int32(), pa.string()) if kind == "dictionary" else getattr(pa, kind)()
    with_column_type(path, wanted)
    assert pa.parquet.read_schema(path).field("text").type == wanted
    assert read(files_config(path)) == ["x", "yé"]


def test_parquet_is_read_in_batches_in_order(tmp_path: Path) -> None:
    texts = [str(number) for number in range(3000)]
    assert read(files_config(parquet(tmp_path / "a.parquet", texts, row_group_size=700))) == texts


def test_reading_can_stop_early(tmp_path: Path) -> None:
    write_text(tmp_path / "a.jsonl", '{"text": "x"}\nbroken')
    source = documents(files_config(tmp_path / "a.jsonl"))
    assert next(source) == "x"
    assert read(files_config(tmp_path / "a.jsonl", data__max_documents=1)) == ["x"]


def test_nothing_named() -> None:
    needs = "data.source=files needs at least one path or glob in data.files, but it is empty"
    assert told(lambda: input_files(files_config())) == needs


@pytest.mark.parametrize("name", ["missing.txt", "*.jsonl"])
def test_a_name_that_matches_nothing(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "a.txt", "x")
    pattern = f"{tmp_path}/{name}"
    expected = f"data.files must name files that exist, but {pattern!r} matches none"
    assert told(lambda: input_files(files_config(tmp_path / "a.txt", pattern))) == expected


@pytest.mark.parametrize("name", ["a.txt", "*.txt", ""])
def test_a_link_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "b.txt", "x")
    (tmp_path / "a.txt").symlink_to("gone.txt")
    assert told(lambda: input_files(files_config(tmp_path / name))).startswith(
        f"{tmp_path}/a.txt must be a file or folder that can be read, but is not: "
    )


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "b.txt", "x")
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert told(lambda: input_files(files_config(tmp_path))) == (
        f"{closed} must be a file or folder that can be read, but is not: [Errno 13] Permission denied: '{closed}'"
    )


def test_a_folder_that_is_linked_to_from_within(tmp_path: Path) -> None:
    write_text(tmp_path / "c" / "a.txt", "x")
    (tmp_path / "c" / "again").symlink_to("..")
    assert told(lambda: input_files(files_config(tmp_path / "c"))) == (
        f"data.files must name folders that end, but {tmp_path}/c/again is a link to one that it is in"
    )
    write_text(tmp_path / "other" / "b.txt", "y")
    (tmp_path / "c" / "again").unlink()
    (tmp_path / "c" / "again").symlink_to("../other")
    assert read(files_config(tmp_path / "c")) == ["x", "y"]


@pytest.mark.parametrize("name", ["a.md", "a", "a.gz", "a.txt.zip", ".txt"])
def test_an_unknown_kind(tmp_path: Path, name: str) -> None:
    path = write_text(tmp_path / name, "x")
    expected = (
        "data.files must end in .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow or .tar, plain or with .gz, "
        f".zst, .bz2 or .xz behind it, but {path} does not"
    )
    assert told(lambda: input_files(files_config(path))) == expected


@pytest.mark.parametrize("packed", [False, True])
def test_text_that_is_not_utf8(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    content = b"gr\xfcn"
    path.write_bytes(gzip.compress(content) if packed else content)
    expected = f"data.files must be UTF-8, but {path} is not at byte 2; convert it, for example with iconv"
    assert told(lambda: read(files_config(path))) == expected


def test_jsonl_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n{"text": "gr\xfcn"}\n')
    expected = f"data.files must be UTF-8, but {path} is not in line 2; convert it, for example with iconv"
    assert told(lambda: read(files_config(path))) == expected


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"text": "x"', "Expecting ',' delimiter: line 1 column 13 (char 12)"),
        ("plain text", "Expecting value: line 1 column 1 (char 0)"),
        ('{"text": ' + "1" * 5000 + "}", "a number has more than 4,300 digits"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
    ],
)
def test_a_line_that_is_no_json(tmp_path: Path, line: str, cause: str) -> None:
    path = write_text(tmp_path / "a.jsonl", '\n{"text": "x"}\n' + line + "\n")
    message = told(lambda: read(files_config(path)))
    assert message.startswith(f"each line of data.files must be JSON, but line 3 of {path} is not: {cause}")


@pytest.mark.parametrize(
    ("record", "have"),
    [
        ({"body": "x", "a\nb": 1}, "has the keys a b, body"),
        ({}, "has the keys none"),
        ({"text": 5}, "has int there"),
        ({"text": ["x"]}, "has list there, whose items data.text_join would join"),
        (["text"], "is list, no object"),
        ("text", "is str, no object"),
        (None, "is NoneType, no object"),
        ({f"k{n}": 0 for n in range(10)}, "has the keys k0, k1, k2, k3, k4, k5, k6, k7, 2 more"),
    ],
)
def test_a_record_without_text(tmp_path: Path, record: object, have: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "x"}, record)
    expected = f"each line of {path} must be an object with the text in data.text_key=text, but line 2 {have}"
    assert told(lambda: read(files_config(path))) == expected


def test_parquet_without_the_column(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ["x"], key="body")
    assert told(lambda: read(files_config(path))) == f"{path} must have the column data.text_key=text, but has id, body"


@pytest.mark.parametrize(("value", "kind"), [(1, "int"), (["x"], "list, whose items data.text_join would join")])
def test_a_parquet_column_of_another_type(tmp_path: Path, value: object, kind: str) -> None:
    path = parquet(tmp_path / "a.parquet", [value])
    expected = f"data.text_key=text must be a column of text in {path}, but holds {kind}"
    assert told(lambda: read(files_config(path))) == expected


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all, but long enough to have a footer"])
def test_a_file_that_is_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    message = told(lambda: read(files_config(path)))
    assert message.startswith(f"data.files must be readable, but {path} is no good parquet file: ")


def test_a_parquet_file_with_damage_in_the_middle(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [f"text {n}" * 9 for n in range(2000)], compression="zstd")
    content = bytearray(path.read_bytes())
    content[200 : len(content) // 2] = b"\xff" * (len(content) // 2 - 200)
    path.write_bytes(bytes(content))
    assert f"but {path} is no good parquet file: " in told(lambda: read(files_config(path)))


def test_parquet_text_that_is_not_utf8(tmp_path: Path) -> None:
    column = pa.array([b"gr\xfcn"], pa.binary()).view(pa.string())
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": column}), path)
    assert f"but {path} is no good parquet file: " in told(lambda: read(files_config(path)))


def damaged(content: bytes) -> dict[str, bytes]:
    packed = gzip.compress(content)
    middle = len(packed) // 2
    return {
        "no gzip": content,
        "truncated": packed[:middle],
        "wrong bytes": packed[:10] + b"\xff" * 20 + packed[30:],
        "wrong checksum": packed[:-8] + bytes(8),
    }


@pytest.mark.parametrize("damage", list(damaged(b"")))
@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_damaged_gz_file(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(b"".join(b'{"text": "%d"}\n' % n for n in range(999)))[damage])
    assert told(lambda: read(files_config(path))).startswith(f"data.files must be readable, but {path} is not: ")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "a.txt", "x")

    def refuse(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    expected = f"data.files must be readable, but {path} is not: [Errno 13] Permission denied: '{path}'"
    assert told(lambda: read(files_config(path))) == expected


def test_a_file_that_goes_away_while_it_is_looked_at(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "x")
    path.unlink()
    assert told(lambda: file_identity(path)).startswith(
        f"{path} must be a file or folder that can be read, but is not: "
    )


def test_identity_follows_files_and_key(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "x")
    before = identity(files_config(path))
    assert identity(files_config(path)) == before
    assert identity(files_config(path, data__text_key="body")) != before
    os.utime(path, ns=(1, 1))
    touched = identity(files_config(path))
    assert touched != before
    write_text(path, "yy")
    os.utime(path, ns=(1, 1))
    assert identity(files_config(path)) not in (before, touched)


def test_the_same_file_has_one_identity_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a.txt", "x")
    write_text(tmp_path / "sub" / "a.txt", "y")
    monkeypatch.chdir(tmp_path)
    absolute, relative = (identity(files_config(name)) for name in (tmp_path / "a.txt", "a.txt"))
    assert absolute == relative
    monkeypatch.chdir(tmp_path / "sub")
    os.utime("a.txt", ns=(1, 1))
    os.utime("../a.txt", ns=(1, 1))
    assert identity(files_config("a.txt")) != identity(files_config("../a.txt"))
