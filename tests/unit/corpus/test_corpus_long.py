"""Records and texts that are larger than memory should hold: they come in chunks, and the same as if read whole."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.data_fixtures import files_config, told, write_text
from trainer.corpus import json_lines, json_values, long_json
from trainer.corpus.cutting import cut
from trainer.corpus.document import BadDocument, BadRecord, Document, EmptyRecord, Origin
from trainer.corpus.inputs import input_files
from trainer.corpus.long_json import LONG_BYTES, LongValue
from trainer.corpus.read import documents, read_unit, records

ORIGIN = Origin("line", 1, "x")
MANY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def made(content: bytes) -> LongValue:
    return LongValue.of_parts(iter((content[:3], content[3:])))


@given(value=VALUES, indent=st.sampled_from([None, 1]), is_ascii=st.booleans())
@MANY
def test_every_value_is_what_the_library_reads(value: Any, indent: int | None, is_ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    content = f" {text}\r\n".encode(errors="surrogatepass")
    try:
        expected = json.loads(content.decode())
    except UnicodeDecodeError:
        return
    assert repr(made(content).whole()) == repr(expected)
    if isinstance(expected, dict):
        assert repr(made(content).opened(expected)) == repr(expected)


@given(text=st.text(st.characters(), max_size=200), is_ascii=st.booleans(), size=st.integers(4, 40))
@MANY
def test_a_text_in_chunks_is_the_text(text: str, is_ascii: bool, size: int) -> None:
    text = text if is_ascii else text.encode(errors="ignore").decode()
    content = json.dumps(text, ensure_ascii=is_ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "CHUNK_BYTES", size)
        patch.setattr(long_json, "_SCANNED_BYTES", 13)
        chunks = list(made(content).chunks(ORIGIN))
    assert "".join(chunks) == json.loads(content)
    # One escape is always taken.
    assert all(len(chunk) <= max(size, 12) for chunk in chunks)


@pytest.mark.parametrize(
    "content",
    [
        *(
            "{",
            '{"a"}',
            '{"a":}',
            '{"a": 1,}',
            '{"a": 1 "b": 2}',
            "{'a': 1}",
            '{"a": 1',
            "[1, 2",
            "[1 2]",
            "[1}",
            "[,]",
        ),
        *('"open', '"a\nb"', r'"\x"', r'"\u12"', "01", "1.", "+1", "nul", "", "1 2", "{} x", "]"),
    ],
)
def test_what_the_library_refuses_is_refused(content: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own is as wide
        json.loads(content)
    with pytest.raises(ValueError, match="byte"):
        made(b"   " + content.encode() + b" ")


def test_a_text_that_is_no_utf8_is_found_when_it_is_read() -> None:
    value = made(b'"gr\xfcn"')
    with pytest.raises(BadDocument) as caught:
        list(value.chunks(ORIGIN))
    assert str(caught.value) == "data.files must be UTF-8, but line 1 of x is not; convert it, for example with iconv"


def test_of_two_fields_with_one_name_the_last_counts() -> None:
    assert made(b'{"a": 1, "a": 2, "b": 3}').opened({"a"}) == {"a": 2, "b": None}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take records from 64 bytes on for long ones."""
    for module in (json_lines, json_values, long_json):
        monkeypatch.setattr(module, "LONG_BYTES", 64)
    for module in (json_lines, json_values):
        monkeypatch.setattr(module, "_BLOCK_BYTES", 16)
    monkeypatch.setattr(long_json, "CHUNK_BYTES", 32)


LONG = 'ü "quoted"\n' * 30
RECORDS = [
    {"text": "short"},
    {"id": [{"x": "}" * 90}], "text": LONG},
    {"text": ["a" * 99, "b"], "meta": {"text": LONG + "deep"}},
    {"body": "x" * 99},
    {"text": None, "more": "x" * 99},
    {"text": " " * 99},
    {"text": "last"},
]


def lines(path: Path, is_ascii: bool = True) -> bytes:
    del path
    return b"".join(json.dumps(record, ensure_ascii=is_ascii).encode() + b"\n" for record in RECORDS)


def array(path: Path) -> bytes:
    del path
    return json.dumps(RECORDS).encode()


FORMS: dict[str, Callable[[Path], bytes]] = {
    "a.jsonl": lines,
    "b.jsonl": lambda path: b"\xef\xbb\xbf" + lines(path, is_ascii=False),
    "a.json": array,
    "b.json": lines,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.usefixtures("short")
def test_long_records_are_what_short_ones_are(tmp_path: Path, name: str, packed: bool) -> None:
    content = FORMS[name](tmp_path)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    data = files_config(path, data__text_join="+")
    files = input_files(data)
    found = [one for unit in cut(files, None) for one in texts_and_faults(read_unit(data, files, unit))]
    each, number = ("line", 4) if b"\n" in content else ("record", 4)
    assert found == [
        *("short", LONG, "a" * 99 + "+b"),
        f"each {each} of {path} must be an object with the text in data.text_key=text, but {each} {number} has the "
        "keys body",
        "last",
    ]
    assert told(lambda: list(documents(files_config(path, data__text_key="meta.text")))).endswith("1 has the keys text")
    chats = files_config(path, data__records="messages")
    assert [dict(record.fields) for record in records(chats, {})] == RECORDS


def texts_and_faults(found: Iterator[Document | EmptyRecord | BadRecord]) -> Iterator[str]:
    for one in found:
        if isinstance(one, BadRecord):
            yield one.problem
        elif isinstance(one, Document):
            yield "".join(one.chunks)


@pytest.mark.usefixtures("short")
def test_a_long_line_that_is_broken_is_one_bad_record(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.jsonl", '{"text": "x"}\n{"text": "' + "y" * 99 + '\n{"text": "z"}')
    data = files_config(path)
    files = input_files(data)
    (unit,) = cut(files)
    x, bad, z = texts_and_faults(read_unit(data, files, unit))
    assert (x, z) == ("x", "z")
    assert bad.startswith(
        f"each line of data.files must be JSON, but line 2 of {path} is not: Expecting a whole string"
    )


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("unit_bytes", [5, 70, 300, 999])
def test_units_in_the_middle_of_long_lines(tmp_path: Path, unit_bytes: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(path))
    data = files_config(path, data__text_join="+")
    files = input_files(data)
    found = [one for unit in cut(files, unit_bytes) for one in texts_and_faults(read_unit(data, files, unit))]
    assert [text for text in found if not text.startswith("each line")] == ["short", LONG, "a" * 99 + "+b", "last"]


def measured(path: Path, **values: object) -> tuple[int, int]:
    """Return the characters of a file's documents, and the most memory that Python held while they were read."""
    data = files_config(path, **values)
    files = input_files(data)
    tracemalloc.start()
    try:
        characters = sum(
            len(chunk)
            for unit in cut(files)
            for document in read_unit(data, files, unit)
            if isinstance(document, Document)
            for chunk in document.chunks
        )
        return characters, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SENTENCE = "The quick brown fox jumps over the lazy dog, and so on.\n"


def grown(path: Path, before: str, text: str, after: str, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.write(before)
        for _ in range(0, count, 1000):
            file.write(text * min(count, 1000))
        file.write(after)
    return path


SIZES = [24 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)]
ESCAPED = json.dumps(SENTENCE)[1:-1]
RECORD = json.dumps({"id": 1, "text": SENTENCE * 20})


@pytest.mark.parametrize("size", SIZES)
def test_memory_does_not_grow_with_a_text_a_line_or_an_array(tmp_path: Path, size: int) -> None:
    """A long line is 1 MiB, a few times; a chunk of a text is less."""
    bound = 8 * LONG_BYTES
    count = size // len(SENTENCE) // 1000 * 1000
    characters, most = measured(grown(tmp_path / "a.txt", "", SENTENCE, "", count))
    assert characters == count * len(SENTENCE)
    assert most < bound
    (tmp_path / "a.txt").unlink()
    characters, most = measured(grown(tmp_path / "a.jsonl", '{"n": 1, "text": "', ESCAPED, '"}\n', count))
    assert characters == count * len(SENTENCE)
    assert most < bound
    (tmp_path / "a.jsonl").unlink()
    count = size // len(RECORD) // 1000 * 1000
    characters, most = measured(grown(tmp_path / "a.json", "[", RECORD + ", ", RECORD + "]", count))
    assert characters == (count + 1) * len(SENTENCE) * 20
    assert most < bound
