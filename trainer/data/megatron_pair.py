"""Writing token ids as a Megatron pair, `.bin` and `.idx`, which other trainers read too. No torch."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from trainer.data.megatron_index import CODES, HEADER, MAGIC
from trainer.data.token_manifest import Shard
from trainer.errors import DataError

LONGEST = (1 << 31) - 1
"""Largest number of tokens of a sequence: the index holds it in four bytes. A longer document has several."""
_ITEMS = 1 << 20
"""Numbers that are written together."""


class PairWriter:
    """A growing pair. A context manager: both files are durable and whole when it ends without an error.

    Memory does not grow with the documents: their lengths wait in a file without a name.

    Args:
        prefix: path of the files without `.bin` and `.idx`.
        dtype: numpy's name of the ids' type, one of `CODES`.

    Raises:
        OSError: the files cannot be written, also of all methods.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self.prefix = prefix
        self.tokens = 0
        self.documents = 0
        self.largest_id = -1
        self.dtype = dtype
        self._type = np.dtype(dtype).newbyteorder("<")
        self._code = CODES[dtype]
        self._digest = hashlib.blake2b(digest_size=16)
        self._ends_digest = hashlib.blake2b(digest_size=16)
        self._open = 0
        self._bin: BinaryIO = _with_suffix(prefix, ".bin").open("wb")
        self._lengths = tempfile.TemporaryFile(dir=prefix.parent)  # noqa: SIM115 - closed at the end of the context.

    def __enter__(self) -> PairWriter:
        return self

    @property
    def digest(self) -> str:
        """Hash of the ids as they are stored."""
        return self._digest.hexdigest()

    @property
    def ends_digest(self) -> str:
        """Hash of the number of tokens up to the end of each document, 8 bytes each."""
        return self._ends_digest.hexdigest()

    def append(self, tokens: npt.NDArray[np.integer[Any]], is_open: bool = False) -> None:
        """Write a document at the end, or a part of one. A document without tokens leaves no trace.

        Args:
            tokens: its ids.
            is_open: the document goes on with what is appended next.

        Raises:
            DataError: an id does not fit the type.
        """
        if len(tokens):
            limits = np.iinfo(self._type)
            for id_ in (int(tokens.min()), int(tokens.max())):
                if not limits.min <= id_ <= limits.max:
                    raise DataError(
                        f"token ids must be in [{limits.min}, {limits.max}] to be stored as {self.dtype}, but one is "
                        f"{id_}; raise model.vocab_size to more than the largest id"
                    )
        self.append_raw(tokens.astype(self._type).tobytes(), np.array([len(tokens)]), is_open)

    def append_raw(self, ids: bytes | memoryview, lengths: npt.NDArray[np.integer[Any]], is_open: bool = False) -> None:
        """Write documents at the end whose ids are of the pair's type already.

        Args:
            ids: ids of all of them, little endian.
            lengths: tokens of each.
            is_open: the last document goes on with what is appended next.

        Raises:
            ValueError: the lengths are not those of the ids.
        """
        found = np.frombuffer(ids, self._type)
        if int(lengths.sum()) != len(found):
            raise ValueError(f"lengths must be those of {len(found)} ids, but together are {int(lengths.sum())}")
        self._bin.write(ids)
        self._digest.update(ids)
        self.largest_id = max(self.largest_id, int(found.max()) if len(found) else -1)
        self.tokens += len(found)
        self._close_documents(lengths.astype(np.int64), is_open)

    def shard(self, text_bytes: int | None = None, marks_blake2b: str | None = None) -> Shard:
        """Return the description of the pair, once it is finished.

        Args:
            text_bytes: bytes of the texts in UTF-8, or None.
            marks_blake2b: hash of the marks of packed examples, or None.
        """
        return Shard(
            name=f"{self.prefix.name}.bin",
            dtype=self.dtype,
            first_byte=0,
            tokens=self.tokens,
            documents=self.documents,
            largest_id=self.largest_id,
            text_bytes=text_bytes,
            blake2b=self.digest,
            boundaries="idx",
            marks_blake2b=marks_blake2b,
            ends_blake2b=self.ends_digest,
        )

    def _close_documents(self, lengths: npt.NDArray[np.int64], is_open: bool) -> None:
        if len(lengths) == 0:
            return
        lengths[0] += self._open
        self._open = int(lengths[-1]) if is_open else 0
        closed = lengths[:-1] if is_open else lengths
        closed = closed[closed > 0]
        if len(closed) == 0:
            return
        self._lengths.write(closed.astype("<i8").tobytes())
        self.documents += len(closed)
        ends = self.tokens - self._open - int(closed.sum()) + np.cumsum(closed)
        self._ends_digest.update(ends.astype("<i8").tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lengths, self._bin:
            if kind is None:
                if self._open:
                    self._close_documents(np.zeros(1, np.int64), is_open=False)
                _make_durable(self._bin)
                self._write_index()

    def _write_index(self) -> None:
        size = self._type.itemsize
        pieces = [len(sizes) for sizes, _ in self._sequences()]
        with _with_suffix(self.prefix, ".idx").open("wb") as file:
            file.write(HEADER.pack(MAGIC, 1, self._code, sum(pieces), self.documents + 1))
            for sizes, _ in self._sequences():
                file.write(sizes.astype("<i4").tobytes())
            place = 0
            for sizes, _ in self._sequences():
                ends = place + np.cumsum(sizes) * size
                file.write((ends - sizes * size).astype("<i8").tobytes())
                place = int(ends[-1])
            number = 0
            for sizes, firsts in self._sequences():
                file.write((number + firsts).astype("<i8").tobytes())
                number += len(sizes)
            file.write(np.array([number], "<i8").tobytes())
            _make_durable(file)

    def _sequences(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield, for some documents at a time, the sizes of their sequences and the first sequence of each."""
        self._lengths.seek(0)
        while held := self._lengths.read(8 * _ITEMS):
            lengths = np.frombuffer(held, "<i8").astype(np.int64)
            counts = -(-lengths // LONGEST)
            firsts = np.cumsum(counts) - counts
            sizes = np.full(int(counts.sum()), LONGEST, np.int64)
            sizes[firsts + counts - 1] = lengths - (counts - 1) * LONGEST
            yield sizes, firsts


def _with_suffix(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
