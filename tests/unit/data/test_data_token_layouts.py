"""Token files of other programs, written here from the descriptions of their formats, and what is read of them."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.data_fixtures import config, stream, told
from trainer.config.schema import TridentConfig
from trainer.data.prepare import prepare
from trainer.data.ready_made import ready_made_pieces, token_sources

EOS = 50
DOCUMENTS = [[1, 2, EOS], [3, EOS], [4, 5, 6, EOS], [7, 8, EOS]]
FLAT = [id_ for document in DOCUMENTS for id_ in document]
LENGTHS = [len(document) for document in DOCUMENTS]
ENDS = np.cumsum(LENGTHS).tolist()


def raw(path: Path, dtype: str = "<u2", ids: Sequence[int] = FLAT) -> Path:
    path.write_bytes(np.array(ids, dtype).tobytes())
    return path


def llmc(path: Path, magic: int = 20240520, version: int = 1, dtype: str = "<u2", count: int = len(FLAT)) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, count
    path.write_bytes(header.tobytes() + np.array(FLAT, dtype).tobytes())
    return path


def litpkds(path: Path, code: int = 8, version: int = 1, dtype: str = "<u2", chunk: int = 6) -> Path:
    path.write_bytes(struct.pack("<7sQBQ", b"LITPKDS", version, code, chunk) + np.array(FLAT, dtype).tobytes())
    return path


def datatrove(path: Path, dtype: str = "<u2", ends: Sequence[int] = ENDS, metadata: str = "gpt2|2\n12\n12 T") -> Path:
    raw(path, dtype)
    Path(f"{path}.index").write_bytes(np.array(ends, "<u8").tobytes())
    if metadata:
        Path(f"{path}.metadata").write_text(metadata)
    return path


def olmo(path: Path, dtype: str = "<u2", rows: Sequence[str] | None = None) -> Path:
    raw(path, dtype)
    starts = [0, *ENDS[:-1]]
    rows = (
        [f'{start},{end},"id, {start}",src,1' for start, end in zip(starts, ENDS, strict=True)]
        if rows is None
        else rows
    )
    with gzip.open(path.with_suffix(".csv.gz"), "wt") as file:
        file.write("".join(f"{row}\n" for row in rows))
    return path


def litdata(folder: Path, kind: str = "no_header_tensor:16", dtype: str = "<i4", **settings: Any) -> Path:
    """Write two chunks: the number of items, the place of each in bytes, and their ids."""
    folder.mkdir()
    chunks = []
    for number, documents in enumerate((DOCUMENTS[:3], DOCUMENTS[3:])):
        items = [np.array(document, dtype).tobytes() for document in documents]
        places = 4 * (len(items) + 2) + np.cumsum([0, *map(len, items)])
        head = np.array([len(items), *places], "<u4").tobytes()
        name = f"chunk-0-{number}.bin"
        (folder / name).write_bytes(head + b"".join(items))
        dim = sum(map(len, documents))
        chunks.append({"chunk_bytes": sum(map(len, items)), "chunk_size": len(items), "filename": name, "dim": dim})
    named = {"compression": None, "chunk_size": None, "chunk_bytes": 1 << 26, "data_format": [kind], "data_spec": "x"}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": {**named, **settings}}))
    return folder


def numpy_file(path: Path, dtype: str = "<u2") -> Path:
    np.save(path, np.array(FLAT, dtype))
    return path


def wanted(*files: Path | str, **values: object) -> TridentConfig:
    keys = {
        "data__source": "tokens",
        "data__files": [str(file) for file in files],
        "data__validation_fraction": 0,
        "model__vocab_size": 100,
    }
    return config(**(keys | values))


def documents(found: TridentConfig) -> list[list[int]]:
    return [tokens.tolist() for _, tokens in ready_made_pieces(found, token_sources(found, None, print))]


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "raw uint16": lambda folder: raw(folder / "train.bin"),
    "numpy": lambda folder: numpy_file(folder / "x.npy", "<i8"),
    "llm.c gpt-2": lambda folder: llmc(folder / "fineweb_train_000001.bin"),
    "llm.c llama-3": lambda folder: llmc(folder / "fineweb_train_000001.bin", 20240801, 7, "<u4"),
    "packed": lambda folder: litpkds(folder / "train_0.bin"),
    "packed int32": lambda folder: litpkds(folder / "train_0.bin", 4, dtype="<i4"),
    "datatrove without an index": lambda folder: raw(folder / "00000_shuffled.ds"),
}
INDEXED: dict[str, Callable[[Path], Path]] = {
    "datatrove": lambda folder: datatrove(folder / "00000_shuffled.ds"),
    "datatrove of four bytes": lambda folder: datatrove(folder / "0.ds", "<u4", metadata="llama|4\n12"),
    "datatrove without metadata": lambda folder: datatrove(folder / "0.ds", "<u4", metadata=""),
    "datatrove of an earlier version": lambda folder: datatrove(folder / "0.ds", metadata="gpt2\n12\n12 T"),
    "olmo": lambda folder: olmo(folder / "part-0-00000.npy"),
    "litdata tensors": lambda folder: litdata(folder / "train"),
    "litdata arrays": lambda folder: litdata(folder / "train", "no_header_numpy:5", "<u2"),
    "litdata index": lambda folder: litdata(folder / "train") / "index.json",
}


@pytest.mark.parametrize("layout", [*LAYOUTS, *INDEXED])
def test_a_layout_is_recognised_and_read_where_it_lies(tmp_path: Path, layout: str) -> None:
    has_ends = layout in INDEXED
    path = (LAYOUTS | INDEXED)[layout](tmp_path)
    keys = {} if has_ends else {"data__eos_id": EOS}
    found = wanted(path, data__cache_dir=str(tmp_path / "cache"), **keys)
    assert documents(found) == DOCUMENTS
    prepared = prepare(found)
    assert stream(prepared).tolist() == FLAT
    assert np.flatnonzero(prepared.shards("train").begins(0, len(FLAT))).tolist() == [0, *ENDS[:-1]]
    shards = prepared.manifest.parts["train"]
    assert (sum(shard.documents for shard in shards), max(shard.largest_id for shard in shards)) == (4, EOS)
    assert not [file for file in prepared.folder.iterdir() if file.suffix == ".bin"]
    # The same tokens are the same data, whatever file they are in.
    if len(shards) == 1:
        other = wanted(raw(tmp_path / "other.bin"), data__eos_id=EOS, data__cache_dir=str(tmp_path / "cache"))
        assert prepare(other).content == prepared.content


def test_the_type_of_a_bare_file_is_the_key_or_follows_from_the_vocabulary(tmp_path: Path) -> None:
    for dtype, kind in (("<u4", "uint32"), ("<i8", "int64"), ("<u1", "uint8")):
        path = raw(tmp_path / f"{kind}.bin", dtype)
        assert documents(wanted(path, data__token_dtype=kind, data__eos_id=EOS)) == DOCUMENTS
    large = raw(tmp_path / "large.bin", "<u4", [1, 70_000, EOS])
    assert documents(wanted(large, model__vocab_size=70_001, data__eos_id=EOS)) == [[1, 70_000, EOS]]


def test_documents_may_end_without_an_id_at_the_end_of_a_file(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.bin", ids=[EOS, 1, EOS, EOS, 2])
    assert documents(wanted(path, data__eos_id=EOS)) == [[EOS], [1, EOS], [EOS], [2]]
    assert documents(wanted(path, data__eos_id=EOS, data__max_documents=2)) == [[EOS], [1, EOS]]


def test_gaps_of_a_table_are_left_out(tmp_path: Path) -> None:
    path = olmo(tmp_path / "a.npy", rows=["0,3", "5,9"])
    found = wanted(path, data__cache_dir=str(tmp_path / "cache"))
    assert documents(found) == [DOCUMENTS[0], DOCUMENTS[2]]
    prepared = prepare(found)
    assert stream(prepared).tolist() == [*DOCUMENTS[0], *DOCUMENTS[2]]
    assert np.flatnonzero(prepared.shards("train").begins(0, 7)).tolist() == [0, 3]


def test_a_file_that_does_not_say_where_documents_end(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.bin", ids=[number % 97 for number in range(40_000)])
    keys = {"data__cache_dir": str(tmp_path / "cache"), "data__validation_fraction": 0.4}
    prepared = prepare(wanted(path, **keys))
    # Parts of 8,192 tokens are held out one by one.
    assert prepared.train_tokens + prepared.validation_tokens == 40_000
    assert prepared.validation_tokens % 8192 in (0, 40_000 % 8192)
    assert prepared.validation_tokens > 0
    for key, value in (("data__mask_documents", True), ("data__boundary_label", "ignore")):
        assert told(partial(prepare, wanted(path, **keys, **{key: value}))) == (
            f"data.mask_documents and data.boundary_label need to know where documents end, but {path} does not "
            f"say it; "
            "set data.eos_id, or leave them out"
        )
    assert told(lambda: prepare(wanted(path, data__max_documents=3, **keys))) == (
        f"data.max_documents needs to know where documents end, but {path} does not say it; set data.eos_id, or leave "
        "data.max_documents out"
    )
    assert prepare(wanted(path, data__mask_documents=True, data__eos_id=96, **keys)).attended is not None


def test_folders_globs_and_names_mean_files_of_ids(tmp_path: Path) -> None:
    for name in ("b.npy", "a.npy"):
        olmo(tmp_path / name)
    (tmp_path / "readme.md").write_text("x")
    twice = [*DOCUMENTS, *DOCUMENTS]
    for names in ([tmp_path], [f"{tmp_path}/*"], [f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", f"{tmp_path}/*.npy"]):
        assert documents(wanted(*names)) == twice
    for name in (f"{tmp_path}/*.bin", str(tmp_path / "gone.bin")):
        expected = f"data.files must name files of token ids (.bin, .ds, .npy), but {name!r} means none"
        assert told(partial(documents, wanted(name))) == expected


def test_what_says_the_documents_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = olmo(tmp_path / "a.npy")
    keys = {"data__cache_dir": str(tmp_path / "cache")}
    assert prepare(wanted(path, **keys)).manifest.parts["train"][0].documents == 4
    olmo(path, rows=["0,12"])
    assert prepare(wanted(path, **keys)).manifest.parts["train"][0].documents == 1


def broken_chunk(folder: Path) -> Path:
    path = litdata(folder / "train") / "chunk-0-0.bin"
    path.write_bytes(b"\x09" + path.read_bytes()[1:])
    return path


def cut(path: Path, size: int = -2) -> Path:
    os.truncate(path, path.stat().st_size + size)
    return path


def with_loss(path: Path) -> Path:
    datatrove(path)
    Path(f"{path}.loss").write_bytes(b"\1" * len(FLAT))
    return path


def with_index(path: Path) -> Path:
    raw(path).with_suffix(".idx").write_bytes(b"x")
    return path


def big_endian(path: Path) -> Path:
    np.save(path, np.array(FLAT, ">u2"))
    return path


FAULTS: dict[str, tuple[Callable[[Path], Path], dict[str, object], str]] = {
    "a Megatron pair": (
        lambda folder: with_index(folder / "a.bin"),
        {},
        "data.source=tokens reads files without a Megatron index, but PATH has one; use data=megatron",
    ),
    "another type": (
        lambda folder: llmc(folder / "a.bin"),
        {"data__token_dtype": "uint32"},
        "data.token_dtype (uint32) must be that of the files, but PATH says uint16; leave it out",
    ),
    "an id that ends nothing": (
        lambda folder: olmo(folder / "a.npy"),
        {"data__eos_id": 3},
        "data.eos_id=3 has no effect, since every file of data.files says where its documents end; leave it out",
    ),
    "an id that is nowhere": (
        lambda folder: raw(folder / "a.bin"),
        {"data__eos_id": 9},
        "data.eos_id (9; by default the tokenizer's) must end documents, but PATH does not hold it; set the id that "
        "ends them there",
    ),
    "half an id": (
        lambda folder: cut(raw(folder / "a.bin"), -1),
        {},
        "data.files: PATH must hold ids of 2 bytes (data.token_dtype=uint16), but has 23 bytes; set "
        "data.token_dtype, or "
        "it is truncated",
    ),
    "llm.c, truncated": (
        lambda folder: cut(llmc(folder / "a.bin")),
        {},
        "data.files: PATH must have 1048 bytes by its header, but has 1046: it is truncated or damaged",
    ),
    "llm.c, of another version": (
        lambda folder: llmc(folder / "a.bin", version=2),
        {},
        "data.files: PATH must hold a stream of tokens as llm.c writes it, but holds version 2 of its format",
    ),
    "llm.c, for an evaluation": (
        lambda folder: llmc(folder / "a.bin", magic=20240522),
        {},
        "data.files: PATH must hold a stream of tokens as llm.c writes it, but holds questions for an evaluation",
    ),
    "packed floats": (
        lambda folder: litpkds(folder / "a.bin", code=6),
        {},
        "data.files: PATH must have version 1 and integer tokens, but has version 1 and type 6",
    ),
    "packed, truncated": (
        lambda folder: cut(litpkds(folder / "a.bin")),
        {},
        "data.files: PATH must have 48 bytes by its header, but has 46: it is truncated or damaged",
    ),
    "packed, cut in its header": (
        lambda folder: cut(litpkds(folder / "a.bin"), -40),
        {},
        "data.files: PATH must have 24 bytes by its format, but has 8: it is truncated or damaged",
    ),
    "datatrove, truncated": (
        lambda folder: cut(datatrove(folder / "a.ds")),
        {},
        "data.files: PATH must have 24 bytes by a.ds.index, but has 22: it is truncated or damaged",
    ),
    "datatrove, index of another": (
        lambda folder: datatrove(folder / "a.ds", ends=[3, 2, 12]),
        {},
        "data.files: PATH.index must hold rising places, but does not: it is of another file or damaged",
    ),
    "datatrove with a mask": (
        lambda folder: with_loss(folder / "a.ds"),
        {},
        "data.files: PATH must be learned from as a whole, but a.ds.loss says which of its tokens count, which is not "
        "read; remove it to learn from all of them",
    ),
    "a table of another": (
        lambda folder: olmo(folder / "a.npy", rows=["0,3", "3,13"]),
        {},
        "data.files: FOLDER/a.csv.gz must hold rising places of its file's 12 tokens, but does not: it is "
        "of another file "
        "or damaged",
    ),
    "a table of words": (
        lambda folder: olmo(folder / "a.npy", rows=["start,end"]),
        {},
        "data.files: FOLDER/a.csv.gz must be a table of first token and end of each document, but is not: "
        "invalid literal "
        "for int() with base 10: 'start'",
    ),
    "numpy, truncated": (
        lambda folder: cut(numpy_file(folder / "a.npy")),
        {},
        "data.files: PATH must have 152 bytes by its header, but has 150: it is truncated or damaged",
    ),
    "numpy of floats": (
        lambda folder: numpy_file(folder / "a.npy", "<f4"),
        {},
        "data.files: PATH must hold one row of little-endian integers, but holds <f4 of shape (12,)",
    ),
    "numpy, big endian": (
        lambda folder: big_endian(folder / "a.npy"),
        {},
        "data.files: PATH must hold one row of little-endian integers, but holds >u2 of shape (12,)",
    ),
    "litdata, compressed": (
        lambda folder: litdata(folder / "t", compression="zstd") / "chunk-0-0.bin",
        {},
        "data.files: PATH must hold token ids alone as litdata's TokensLoader writes them (one tensor of integers an "
        "item, not compressed), but is compressed or encrypted",
    ),
    "litdata of objects": (
        lambda folder: litdata(folder / "t", data_format=["int", "jpeg"]) / "chunk-0-0.bin",
        {},
        "data.files: PATH must hold token ids alone as litdata's TokensLoader writes them (one tensor of integers an "
        "item, not compressed), but holds ['int', 'jpeg']",
    ),
    "litdata, truncated": (
        lambda folder: cut(litdata(folder / "t") / "chunk-0-1.bin", -4),
        {},
        "data.files: PATH must have 24 bytes by index.json, but has 20: it is truncated or damaged",
    ),
    "litdata, damaged": (
        broken_chunk,
        {},
        "data.files: PATH must begin with the places of its 3 items, but does not: it is damaged",
    ),
    "an id beyond the vocabulary": (
        lambda folder: raw(folder / "a.bin"),
        {"model__vocab_size": 50},
        "token ids of data.files must be in [0, model.vocab_size (50)), but token 2 of PATH is 50; set "
        "model.vocab_size "
        "to that of the tokenizer that made them",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_is_no_such_file_is_told(tmp_path: Path, fault: str) -> None:
    make, keys, expected = FAULTS[fault]
    path = make(tmp_path)
    assert told(lambda: documents(wanted(path, **keys))) == expected.replace("PATH", str(path)).replace(
        "FOLDER", str(tmp_path)
    )


def test_a_chunk_that_an_index_lists_is_missing(tmp_path: Path) -> None:
    folder = litdata(tmp_path / "train")
    (folder / "chunk-0-1.bin").unlink()
    expected = f"data.files: {folder}/index.json lists chunk-0-1.bin, which is missing"
    assert told(lambda: documents(wanted(folder))) == expected


def test_numbers_of_several_types_stay_integers(tmp_path: Path) -> None:
    names = [raw(tmp_path / "a.bin", "<u8", [1, 2]), llmc(tmp_path / "b.bin")]
    with pytest.raises(Exception, match="token_dtype"):
        documents(wanted(*names, data__token_dtype="uint64"))
    numpy_file(tmp_path / "c.npy", "<u8")
    numpy_file(tmp_path / "d.npy", "<i8")
    found = wanted(tmp_path / "c.npy", tmp_path / "d.npy", data__eos_id=EOS, data__cache_dir=str(tmp_path / "cache"))
    assert prepare(found).shards("train").tokens(10, 5).dtype == np.int64
