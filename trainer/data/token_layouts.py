"""Files of token ids that other programs wrote: the type of the ids, and where they and documents lie. No torch.

docs/token_files.md says how each layout was found out.
"""

from __future__ import annotations

import csv
import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.corpus.wording import reason
from trainer.data.megatron_index import MAGIC
from trainer.errors import DataError

SUFFIXES = (".bin", ".ds", ".npy")
"""Suffixes by which files of ids are found in a folder and by a glob; one that is named may have any."""
LITDATA_INDEX = "index.json"
_LITPKDS = b"LITPKDS"
_LITPKDS_HEADER = struct.Struct("<7sQBQ")
_LITPKDS_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_LLMC_HEADER_BYTES = 1024
_LLMC_TYPES = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
_LLMC_EVALUATION = 20240522
_TORCH_TYPES = {
    11: "uint8",
    12: "int8",
    **dict.fromkeys((13, 14), "int16"),
    **dict.fromkeys((15, 16), "int32"),
    **dict.fromkeys((17, 18), "int64"),
}
_NUMPY_TYPES = dict(enumerate(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")))
_LITDATA_TYPES = {"no_header_tensor": _TORCH_TYPES, "no_header_numpy": _NUMPY_TYPES}
_ROWS = 1 << 16
"""Documents that are looked at together."""
_BLOCK = 1 << 22
"""Tokens that are looked at together."""


class Stretches(NamedTuple):
    """Consecutive ids of a file, `[n]` each, that hold whole documents in order. A document has one or several."""

    starts: npt.NDArray[np.int64]
    """Place of the first id of each, counted from the file's first one."""
    lengths: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    """Number of the document of each, rising; only a change means something."""


Documents = Callable[[], Iterator[Stretches]]


@dataclass(frozen=True)
class TokenFile:
    """A file of ids."""

    path: Path
    dtype: str
    """numpy's name of the ids' type, little endian."""
    first_byte: int
    """Bytes before the first id."""
    tokens: int
    documents: Documents | None
    """Gives the documents in order; None: the file does not say where they end."""
    is_indexed: bool = False
    """True if an index beside it has exactly its documents, one behind the other."""
    ended_by: int | None = None
    """Id by which the ends of documents are found, if nothing else says them."""

    def ids(self) -> npt.NDArray[np.integer[Any]]:
        """Return the ids, mapped, `[tokens]`.

        Raises:
            OSError: the file cannot be read.
        """
        if self.tokens == 0:
            return np.empty(0, self.dtype)
        kind = np.dtype(self.dtype).newbyteorder("<")
        return np.memmap(self.path, kind, "r", self.first_byte, (self.tokens,)).view(np.ndarray)


@dataclass(frozen=True)
class Given:
    """Facts about files that do not say them."""

    dtype: str | None
    """Type of the ids; None: the smaller of uint16 and uint32 that holds the vocabulary."""
    vocab_size: int
    eos_id: int | None
    """Id that ends a document."""

    def dtype_of(self, path: Path, found: str | None) -> str:
        """Return the type of a file's ids.

        Raises:
            DataError: the file says another one than the key.
        """
        if found is None:
            return self.dtype or ("uint16" if self.vocab_size <= 1 << 16 else "uint32")
        if self.dtype not in (None, found):
            raise DataError(
                f"data.token_dtype ({self.dtype}) must be that of the files, but {path} says {found}; leave it out"
            )
        return found


def token_file(path: Path, given: Given) -> TokenFile:
    """Return what a file of ids holds. Its layout is known by its first bytes, or by what lies beside it.

    Raises:
        DataError: it cannot be read, is truncated, is damaged, or holds no ids.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_LLMC_HEADER_BYTES)
        size = path.stat().st_size
        if head.startswith(MAGIC) or path.with_suffix(".idx").is_file():
            raise DataError(
                f"data.source=tokens reads files without a Megatron index, but {path} has one; use data=megatron"
            )
        if head.startswith(b"\x93NUMPY"):
            return _numpy(path, given)
        if head.startswith(_LITPKDS):
            return _litpkds(path, head, size, given)
        numbers = np.frombuffer(head[: len(head) // 4 * 4], "<i4")[:3].tolist()
        if size >= _LLMC_HEADER_BYTES and numbers[0] in {magic for magic, _ in _LLMC_TYPES} | {_LLMC_EVALUATION}:
            return _llmc(path, numbers, size, given)
        if path.suffix == ".ds":
            return _datatrove(path, size, given)
        chunk = _litdata_chunk(path)
        return _raw(path, size, given) if chunk is None else _litdata(path, *chunk, size, given)
    except OSError as error:
        raise DataError(f"data.files must be readable, but {path}: {reason(error)}") from error


def companions(path: Path) -> list[Path]:
    """Return the files beside a file of ids that say where its documents end or what its type is."""
    names = (
        path.with_suffix(".csv.gz"),
        Path(f"{path}.csv.gz"),
        Path(f"{path}.index"),
        Path(f"{path}.metadata"),
        path.with_name(LITDATA_INDEX),
    )
    return [name for name in names if name.is_file()]


def litdata_chunks(index: Path) -> list[Path]:
    """Return the chunks that an index.json lists, in its order; none if it is of another program.

    Raises:
        DataError: a chunk is missing.
        OSError: it cannot be read.
    """
    found = [index.with_name(str(chunk["filename"])) for chunk in _listed(index)[0]]
    for path in found:
        if not path.is_file():
            raise DataError(f"data.files: {index} lists {path.name}, which is missing")
    return found


def _truncated(path: Path, expected: int, size: int, by: str) -> DataError:
    return DataError(
        f"data.files: {path} must have {expected} bytes by {by}, but has {size}: it is truncated or damaged"
    )


def _numpy(path: Path, given: Given) -> TokenFile:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
            first = file.tell()
    except ValueError as error:
        raise DataError(
            f"data.files: {path} must be a file of numpy, but its header is damaged: {reason(error)}"
        ) from error
    if len(shape) != 1 or kind.kind not in "iu" or kind.byteorder == ">":
        raise DataError(
            f"data.files: {path} must hold one row of little-endian integers, but holds {kind.str} of shape {shape}"
        )
    expected, size = first + shape[0] * kind.itemsize, path.stat().st_size
    if size != expected:
        raise _truncated(path, expected, size, "its header")
    return _plain(path, given, given.dtype_of(path, kind.name), first, shape[0])


def _litpkds(path: Path, head: bytes, size: int, given: Given) -> TokenFile:
    if size < _LITPKDS_HEADER.size:
        raise _truncated(path, _LITPKDS_HEADER.size, size, "its format")
    _, version, code, chunk = _LITPKDS_HEADER.unpack_from(head)
    if version != 1 or code not in _LITPKDS_TYPES:
        raise DataError(
            f"data.files: {path} must have version 1 and integer tokens, but has version {version} and type {code}"
        )
    dtype = given.dtype_of(path, _LITPKDS_TYPES[code])
    tokens, rest = divmod(size - _LITPKDS_HEADER.size, np.dtype(dtype).itemsize)
    if rest or (chunk and tokens % chunk):
        expected = _LITPKDS_HEADER.size + -(-tokens // max(chunk, 1)) * chunk * np.dtype(dtype).itemsize
        raise _truncated(path, expected, size, "its header")
    return _plain(path, given, dtype, _LITPKDS_HEADER.size, tokens)


def _llmc(path: Path, numbers: list[int], size: int, given: Given) -> TokenFile:
    magic, version, tokens = numbers
    if (magic, version) not in _LLMC_TYPES:
        what = "questions for an evaluation" if magic == _LLMC_EVALUATION else f"version {version} of its format"
        raise DataError(f"data.files: {path} must hold a stream of tokens as llm.c writes it, but holds {what}")
    dtype = given.dtype_of(path, _LLMC_TYPES[magic, version])
    expected = _LLMC_HEADER_BYTES + tokens * np.dtype(dtype).itemsize
    if tokens < 0 or size != expected:
        raise _truncated(path, expected, size, "its header")
    return _plain(path, given, dtype, _LLMC_HEADER_BYTES, tokens)


def _datatrove(path: Path, size: int, given: Given) -> TokenFile:
    loss, index, metadata = (Path(f"{path}.{suffix}") for suffix in ("loss", "index", "metadata"))
    if loss.is_file():
        raise DataError(
            f"data.files: {path} must be learned from as a whole, but {loss.name} says which of its tokens count, "
            "which is not read; remove it to learn from all of them"
        )
    ends = np.fromfile(index, "<u8").astype(np.int64) if index.is_file() else None
    if ends is not None and len(ends) and (ends[0] < 0 or (np.diff(ends) < 0).any()):
        raise DataError(f"data.files: {index} must hold rising places, but does not: it is of another file or damaged")
    found = _datatrove_bytes(metadata)
    if found is None and ends is not None and len(ends) and ends[-1]:
        found = size // int(ends[-1])
    dtype = given.dtype_of(path, {2: "uint16", 4: "uint32"}.get(found or 0))
    tokens, rest = divmod(size, np.dtype(dtype).itemsize)
    if rest or (ends is not None and (int(ends[-1]) if len(ends) else 0) != tokens):
        last = int(ends[-1]) if ends is not None and len(ends) else tokens
        raise _truncated(path, last * np.dtype(dtype).itemsize, size, index.name)
    if ends is None:
        return _plain(path, given, dtype, 0, tokens)
    return TokenFile(path, dtype, 0, tokens, partial(_between, ends))


def _datatrove_bytes(metadata: Path) -> int | None:
    """Return the bytes of an id, which the first line says behind the tokenizer's name since some version."""
    if not metadata.is_file():
        return None
    first = metadata.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    last = first.rpartition("|")[2]
    return int(last) if last in ("2", "4") and "|" in first else None


def _litdata_chunk(path: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return what an index.json beside a file says of it, and the config that it names; None if it says nothing."""
    index = path.with_name(LITDATA_INDEX)
    if not index.is_file():
        return None
    chunks, settings = _listed(index)
    return next(((chunk, settings) for chunk in chunks if chunk.get("filename") == path.name), None)


def _listed(index: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        held = json.loads(index.read_text(encoding="utf-8"))
        return [dict(chunk) for chunk in held["chunks"]], dict(held["config"])
    # Other programs have an index.json too.
    except (ValueError, TypeError, KeyError):
        return [], {}


def _litdata(path: Path, chunk: dict[str, Any], settings: dict[str, Any], size: int, given: Given) -> TokenFile:
    formats = settings.get("data_format") or []
    name, _, code = str(formats[0]).partition(":") if len(formats) == 1 else ("", "", "")
    found = _LITDATA_TYPES.get(name, {}).get(int(code) if code.isdigit() else -1)
    is_packed = settings.get("compression") or settings.get("encryption")
    if found is None or is_packed or not isinstance(chunk.get("dim"), int):
        what = "is compressed or encrypted" if is_packed else f"holds {formats}"
        raise DataError(
            f"data.files: {path} must hold token ids alone as litdata's TokensLoader writes them (one tensor of "
            f"integers an item, not compressed), but {what}"
        )
    dtype = given.dtype_of(path, found)
    items, item_bytes = int(chunk["chunk_size"]), np.dtype(dtype).itemsize
    first = 4 * (items + 2)
    expected = first + chunk["dim"] * item_bytes
    if size != expected:
        raise _truncated(path, expected, size, LITDATA_INDEX)
    offsets = np.fromfile(path, "<u4", items + 2).astype(np.int64)
    ends, rest = np.divmod(offsets[2:] - first, item_bytes)
    if offsets[0] != items or offsets[1] != first or rest.any() or (np.diff(offsets[1:]) < 0).any():
        raise DataError(
            f"data.files: {path} must begin with the places of its {items} items, but does not: it is damaged"
        )
    return TokenFile(path, dtype, first, chunk["dim"], partial(_between, ends))


def _raw(path: Path, size: int, given: Given) -> TokenFile:
    dtype = given.dtype_of(path, None)
    tokens, rest = divmod(size, np.dtype(dtype).itemsize)
    if rest:
        raise DataError(
            f"data.files: {path} must hold ids of {np.dtype(dtype).itemsize} bytes (data.token_dtype={dtype}), but has "
            f"{size} bytes; set data.token_dtype, or it is truncated"
        )
    return _plain(path, given, dtype, 0, tokens)


def _plain(path: Path, given: Given, dtype: str, first_byte: int, tokens: int) -> TokenFile:
    """Return a file whose documents a table beside it says, or the id that ends each, or nothing."""
    table = next((name for name in (path.with_suffix(".csv.gz"), Path(f"{path}.csv.gz")) if name.is_file()), None)
    bare = TokenFile(path, dtype, first_byte, tokens, None)
    if table is not None:
        return TokenFile(path, dtype, first_byte, tokens, partial(_of_table, table, tokens))
    if given.eos_id is not None:
        return TokenFile(path, dtype, first_byte, tokens, partial(_ended_by, bare, given.eos_id), ended_by=given.eos_id)
    return bare


def _between(ends: npt.NDArray[np.int64]) -> Iterator[Stretches]:
    """Yield documents that follow each other, by the places at which they end."""
    for first in range(0, len(ends), _ROWS):
        here = ends[first : first + _ROWS]
        lengths = np.diff(here, prepend=ends[first - 1] if first else 0)
        yield Stretches(here - lengths, lengths, np.arange(first, first + len(here)))


def _of_table(table: Path, tokens: int) -> Iterator[Stretches]:
    """Yield the documents of a table: the first number of a row is a document's first token, the second its end."""
    end = first = 0
    try:
        with gzip.open(table, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            while found := [(int(row[0]), int(row[1])) for row in islice(rows, _ROWS)]:
                places = np.array(found, dtype=np.int64)
                flat = np.concatenate([[end], places.ravel()])
                if (np.diff(flat) < 0).any() or flat[-1] > tokens:
                    raise DataError(
                        f"data.files: {table} must hold rising places of its file's {tokens} tokens, but does not: it "
                        "is of another file or damaged"
                    )
                end = int(flat[-1])
                yield Stretches(places[:, 0], places[:, 1] - places[:, 0], np.arange(first, first + len(places)))
                first += len(places)
    except (EOFError, ValueError, IndexError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"data.files: {table} must be a table of first token and end of each document, but is not: {reason(error)}"
        ) from error


def _ended_by(file: TokenFile, eos_id: int) -> Iterator[Stretches]:
    """Yield the documents that an id ends; the last one need not be ended.

    Raises:
        DataError: the id is nowhere in the file.
    """
    ids, start, first = file.ids(), 0, 0
    for block in range(0, file.tokens, _BLOCK):
        ends = np.flatnonzero(ids[block : block + _BLOCK] == eos_id) + block + 1
        if block + _BLOCK >= file.tokens and (len(ends) == 0 or ends[-1] < file.tokens):
            ends = np.append(ends, file.tokens)
        if len(ends):
            lengths = np.diff(ends, prepend=start)
            yield Stretches(ends - lengths, lengths, np.arange(first, first + len(ends)))
            start, first = int(ends[-1]), first + len(ends)
    if first == 1 and int(ids[-1]) != eos_id:
        raise DataError(
            f"data.eos_id ({eos_id}; by default the tokenizer's) must end documents, but {file.path} does not hold it; "
            "set the id that ends them there"
        )
