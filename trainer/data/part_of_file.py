"""The ids of a file that belong to one part of the data: which they are, and where documents end. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.token_files import ENDS, EXTENTS, ShardWriter, dtype_for
from trainer.data.token_layouts import Stretches, TokenFile
from trainer.data.token_manifest import Shard
from trainer.errors import DataError
from trainer.progress import current

_BLOCK = 1 << 22
"""Ids that are hashed together."""


class PartOfFile:
    """The growing description of a part. A context manager.

    Args:
        file: the file.
        ids: its ids.
        beside: path, without suffix, of the files that say which ids are of the part and where documents end.
        vocab_size: number of ids of the model. Ids are hashed in the type that it needs, as a copy would have it.

    Raises:
        OSError: the files cannot be written, also of all methods.
    """

    def __init__(self, file: TokenFile, ids: npt.NDArray[np.integer[Any]], beside: Path, vocab_size: int) -> None:
        self._file = file
        self._ids = ids
        self._beside = beside
        self._vocab_size = vocab_size
        self._stored = np.dtype(dtype_for(vocab_size)).newbyteorder("<")
        self._digest = hashlib.blake2b(digest_size=16)
        self._tokens = 0
        self._documents = 0
        self._largest = -1
        self._extents = ShardWriter(beside.with_name(beside.name + EXTENTS), "<i8")
        self._ends = ShardWriter(beside.with_name(beside.name + ENDS), "<i8")
        self._first = 0
        self._end = -1

    def __enter__(self) -> PartOfFile:
        return self

    def add(self, found: Stretches) -> None:
        """Take whole documents, none of whose stretches is empty.

        Raises:
            DataError: an id is not in the vocabulary.
        """
        if len(found.starts) == 0:
            return
        logical_ends = self._tokens + np.cumsum(found.lengths)
        if self._file.documents is not None:
            is_last = np.append(np.diff(found.documents) != 0, True)
            self._ends.append(logical_ends[is_last])
            self._documents += int(is_last.sum())
        ends = found.starts + found.lengths
        is_new = found.starts != np.concatenate([[self._end], ends[:-1]])
        places = np.flatnonzero(is_new)
        if self._extents.count == 0:
            self._first = int(found.starts[0])
        starts = np.stack([(logical_ends - found.lengths)[places], found.starts[places]], axis=1)
        self._extents.append(starts.ravel())
        for first, last in zip(
            [0, *places[places > 0].tolist()], [*places[places > 0].tolist(), len(ends)], strict=True
        ):
            self._hash(int(found.starts[first]), int(ends[last - 1]))
        self._tokens, self._end = int(logical_ends[-1]), int(ends[-1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in (self._extents, self._ends):
            writer.__exit__(kind, error, trace)

    def shards(self) -> list[Shard]:
        """Return the description of a part that is finished; none if no id is of it. Needless files are removed."""
        extents = self._beside.with_name(self._beside.name + EXTENTS)
        ends = self._beside.with_name(self._beside.name + ENDS)
        file, is_scattered = self._file, self._extents.count > 2
        is_whole = not is_scattered and self._tokens == file.tokens
        boundaries = "none" if file.documents is None else "idx" if file.is_indexed and is_whole else "ends"
        if not is_scattered:
            extents.unlink()
        if boundaries != "ends" or self._tokens == 0:
            ends.unlink()
        if self._tokens == 0:
            return []
        skipped = 0 if is_scattered else self._first * np.dtype(file.dtype).itemsize
        return [
            Shard(
                name=str(file.path),
                dtype=file.dtype,
                first_byte=file.first_byte + skipped,
                tokens=self._tokens,
                documents=self._documents,
                largest_id=self._largest,
                text_bytes=None,
                blake2b=self._digest.hexdigest(),
                boundaries=boundaries,
                ends_blake2b=None if file.documents is None else self._ends.digest.hexdigest(),
                beside=self._beside.name,
                is_scattered=is_scattered,
            )
        ]

    def _hash(self, start: int, end: int) -> None:
        for first in range(start, end, _BLOCK):
            current().beat()
            block = self._ids[first : min(end, first + _BLOCK)]
            check_ids(self._file, block, first, self._vocab_size)
            self._digest.update(block.astype(self._stored).tobytes())
            self._largest = max(self._largest, int(block.max()))


def check_ids(file: TokenFile, ids: npt.NDArray[np.integer[Any]], first: int, vocab_size: int) -> None:
    """Check that ids of a file, the first of which is at `first`, are ids of the model.

    Raises:
        DataError: one is not.
    """
    wrong = int(ids.max()) if int(ids.max()) >= vocab_size else int(ids.min())
    if not 0 <= wrong < vocab_size:
        place = first + int(np.flatnonzero(ids == wrong)[0])
        raise DataError(
            f"token ids of data.files must be in [0, model.vocab_size ({vocab_size})), but token {place} of "
            f"{file.path} is {wrong}; set model.vocab_size to that of the tokenizer that made them"
        )
