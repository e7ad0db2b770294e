"""Where files are found: names in any case, folders, globs, and places elsewhere."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest

from tests.unit.corpus.corpus_fixtures import cut_texts
from tests.unit.data.data_fixtures import config, files_config, told, write_text
from trainer.corpus.cutting import cut
from trainer.corpus.inputs import identity, input_files
from trainer.corpus.json_values import holds_lines
from trainer.corpus.read import documents
from trainer.corpus.units import Compression, InputFile, Kind
from trainer.data.prepare import prepare


def forms(*names: object) -> list[tuple[str, Kind, Compression]]:
    files = input_files(files_config(*names))
    return [(os.path.basename(file.path), file.kind, file.compression) for file in files]


def read(*names: object, **values: object) -> list[str]:
    return list(documents(files_config(*names, **values)))


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("DOCS_UPPER.JSONL", Kind.json_lines, Compression.none),
        ("a.ndjson", Kind.json_lines, Compression.none),
        ("a.json.gz", Kind.json, Compression.gz),
        ("a.Txt.ZST", Kind.text, Compression.zst),
        ("a.csv.bz2", Kind.csv, Compression.bz2),
        ("a.tsv.xz", Kind.tsv, Compression.xz),
        ("a.b.parquet", Kind.parquet, Compression.none),
        ("a.arrow", Kind.arrow, Compression.none),
        ("a.tar", Kind.tar, Compression.none),
        ("a.tar.gz", Kind.tar, Compression.gz),
        ("a.tgz", Kind.tar, Compression.gz),
    ],
)
def test_the_name_says_the_form(tmp_path: Path, name: str, kind: Kind, compression: Compression) -> None:
    assert forms(write_text(tmp_path / name, "x")) == [(name, kind, compression)]


def test_all_that_can_be_read_below_a_folder_is_read(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/deep/a.txt", "README.md", ".hidden.txt", ".git/x.txt", "_SUCCESS", "lang=en/c.txt"):
        write_text(tmp_path / "corpus" / name, name)
    expected = ["b.txt", "lang=en/c.txt", "sub/deep/a.txt"]
    for pattern in (f"{tmp_path}/corpus", f"{tmp_path}/corpus/", f"{tmp_path}/corp*"):
        assert read(pattern) == expected
    # The same file by two ways is one.
    assert read(f"{tmp_path}/corpus", f"{tmp_path}/corpus/b.txt") == expected


def test_a_glob_that_matches_files_means_the_files(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    write_text(tmp_path / "old" / "b.txt", "b")
    assert read(tmp_path / "*") == ["a"]


def test_a_cache_below_the_data_is_none_of_them(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "a")
    (tmp_path / "cache").mkdir()
    prepared = prepare(config(data__source="files", data__files=[str(tmp_path)], data__cache_dir=f"{tmp_path}/cache"))
    assert (prepared.folder / "tokenizer").is_dir()
    # Work that was interrupted.
    write_text(tmp_path / "cache" / ".0123.work" / "tokenizer" / "tokenizer.json", "{}")
    write_text(tmp_path / "mine" / "manifest.json", json.dumps({"text": "b", "parts": []}))
    assert read(tmp_path) == ["a", "b"]
    assert forms(tmp_path / "*") == [("a.txt", Kind.text, Compression.none)]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "self.txt").symlink_to("self.txt")
    assert told(lambda: read(tmp_path / "pipe.txt")) == (
        f"data.files must name files, but {str(tmp_path / 'pipe.txt')!r} matches only pipes, sockets or devices"
    )
    assert told(lambda: read(tmp_path / "self.txt")).startswith(f"{tmp_path / 'self.txt'} must be a file or folder")


def test_a_folder_without_a_file_that_can_be_read(tmp_path: Path) -> None:
    write_text(tmp_path / "code" / "a.py", "x")
    assert told(lambda: read(tmp_path / "code")) == (
        f"data.files must name files, but {str(tmp_path / 'code')!r} matches only folders without one that ends in "
        ".txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .tar"
    )


def test_a_saved_data_set_is_its_tables(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": ["a", "b"], "id": [1, 2]}).save_to_disk(str(folder), num_shards=2)
    write_text(folder / "cache-1.arrow", "of the library")
    assert read(folder) == ["a", "b"]
    assert forms(folder)[0] == ("data-00000-of-00002.arrow", Kind.arrow, Compression.none)
    write_text(folder / "state.json", "{}")
    assert told(lambda: read(folder)).startswith(
        f"{folder}/state.json must describe a data set that save_to_disk wrote"
    )


def test_splits_of_a_saved_data_set_are_not_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    sets = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(sets).save_to_disk(str(folder))
    assert told(lambda: read(folder)) == (
        f"data.files must name one split of a data set, but {folder} holds several; name one of its folders, or use "
        f"data=hub data.hub_path={folder} with data.hub_split"
    )
    assert read(folder / "train") == ["train"]


def test_later_keys_leave_the_caches_of_earlier_versions_good(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "x")
    assert identity(files_config(path)) == ["text", f"{path}:1:{path.stat().st_mtime_ns}"]
    others = [{}, {"data__document_separator": "|"}, {"data__text_join": "|"}]
    assert len({tuple(identity(files_config(path, **values))) for values in others}) == 3


def test_a_large_json_file_of_lines_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.corpus.inputs.UNIT_BYTES", 30)
    texts = [f"text {number}" for number in range(9)]
    lines = write_text(tmp_path / "a.json", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    array = write_text(tmp_path / "b.json", json.dumps([{"text": text} for text in texts]))
    assert [kind for _, kind, _ in forms(lines, array)] == [Kind.json_lines, Kind.json]
    assert cut_texts(files_config(lines), 30) == texts
    assert not holds_lines(InputFile(str(tmp_path / "gone"), 1, "x", Kind.json))


@pytest.mark.parametrize("count", [4000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_many_small_files_are_listed_and_cut_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for folder in range(20):
        (tmp_path / str(folder)).mkdir()
        for number in range(count // 20):
            os.close(os.open(tmp_path / str(folder) / f"{number}.txt", os.O_CREAT | os.O_WRONLY))
    calls = {"stat": 0, "lstat": 0}
    for name in calls:
        monkeypatch.setattr(os, name, partial(_counted, calls, name, getattr(os, name)))
    start = time.perf_counter()
    files = input_files(files_config(tmp_path))
    units = list(cut(files))
    took = time.perf_counter() - start
    assert len(files) == count
    assert len(units) == -(-count // 4096)
    # One for each file, and some for each folder and the folders above it.
    assert sum(calls.values()) < count + 1000
    # 200,000 take 5 s on a machine that does nothing else.
    assert took < 3 + 15 * count / 200_000


def _counted(calls: dict[str, int], name: str, call: Any, *args: Any, **options: Any) -> Any:
    calls[name] += 1
    return call(*args, **options)


@pytest.fixture
def memory() -> Iterator[Any]:
    place = fsspec.filesystem("memory")
    place.store.clear()
    yield place
    place.store.clear()


def test_addresses_are_files_folders_and_globs(memory: Any) -> None:
    memory.pipe("/corpus/b.txt", b"two")
    memory.pipe("/corpus/sub/c.jsonl.gz", gzip.compress(b'{"text": "three"}'))
    memory.pipe("/corpus/a.txt", b"one")
    memory.pipe("/corpus/README.md", b"no")
    memory.pipe("/corpus/.hidden.txt", b"no")
    assert read("memory://corpus/a.txt") == ["one"]
    assert read("memory://corpus") == ["one", "two", "three"]
    assert read("memory://corpus/*.txt", "memory:///corpus/a.txt") == ["one", "two"]
    assert [(file.size, file.kind) for file in input_files(files_config("memory://corpus/a.txt"))] == [(3, Kind.text)]


def test_an_address_is_read_in_units(memory: Any) -> None:
    texts = [f"text {number} ü" for number in range(20)]
    memory.pipe("/a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    assert cut_texts(files_config("memory://a.jsonl"), 50) == texts


def test_an_address_that_changes_has_another_identity(memory: Any) -> None:
    memory.pipe("/a.txt", b"x")
    before = identity(files_config("memory://a.txt"))
    assert identity(files_config("memory://a.txt")) == before
    memory.pipe("/a.txt", b"y")
    assert identity(files_config("memory://a.txt")) != before


@pytest.mark.parametrize("address", ["memory://nowhere/a.txt", "memory://corpus/*.jsonl"])
def test_an_address_that_is_not_there(memory: Any, address: str) -> None:
    memory.pipe("/corpus/a.txt", b"x")
    assert told(lambda: read(address)) == f"data.files must name files that exist, but {address!r} matches none"


def test_an_address_goes_away(memory: Any) -> None:
    memory.pipe("/a.txt", b"x")
    data = files_config("memory://a.txt")
    texts = documents(data)
    memory.open = _broken
    try:
        message = told(lambda: list(texts))
    finally:
        del memory.open
    assert message == "data.files must be readable, but memory://a.txt is not: RuntimeError: the line is cut"


def _broken(*_args: object, **_options: object) -> None:
    raise RuntimeError("the line is cut\nand more")


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    assert told(lambda: read("s3://bucket/a.txt")) == (
        "data.files=s3://bucket/a.txt needs a package that is not installed: Install s3fs to access S3; install it "
        "with pip, or copy the files to this machine"
    )


def test_an_unknown_kind_of_address() -> None:
    assert told(lambda: read("nowhere://x/a.txt")) == (
        "data.files must be paths or addresses like s3://bucket/x.jsonl, but nowhere://x/a.txt is not: Protocol not "
        "known: nowhere"
    )


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_the_web_is_read_also_where_it_cannot_be_entered_in_the_middle(tmp_path: Path) -> None:
    # More than the driver takes at once.
    texts = [f"text {number} " + "x" * 300_000 for number in range(40)]
    write_text(tmp_path / "a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/a.jsonl?download=true"
        data = files_config(address)
        assert [unit.is_fed for unit in cut(input_files(data), 100)] == [True]
        assert read(address) == texts
        gone = f"http://127.0.0.1:{server.server_port}/gone.jsonl"
        assert told(lambda: read(gone)).startswith(
            f"data.files must name files that can be reached, but {gone} cannot: ClientResponseError: 404"
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
    assert told(lambda: read(address)).startswith(
        f"data.files must name files that can be reached, but {address} cannot: "
    )
