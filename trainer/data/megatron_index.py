r"""The index of a Megatron pair: where each sequence lies in the .bin, and which sequences are a document. No torch.

Layout (little endian): b"MMIDIDX\0\0", version u64 = 1, dtype code u8, sequence count u64, document count u64, then
sizes i32[sequences], byte offsets i64[sequences], and the first sequence of each document i64[documents], the last of
which is the sequence count.
"""

from __future__ import annotations

import struct
import sys
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
"""Number of each type of ids that every reader of the format knows."""
_TYPES = {code: name for name, code in CODES.items()}


class PairIndex:
    """An index, mapped: opening it reads its header alone.

    Args:
        path: the .idx file.

    Raises:
        DataError: it is not of this format, its ids are no integers, or it is truncated.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
        if not head.startswith(MAGIC):
            raise DataError(f"data.files: {path} must be a Megatron index (MMIDIDX), but does not begin like one")
        if len(head) < HEADER.size:
            raise DataError(
                f"data.files: {path} must have at least {HEADER.size} bytes, but has {size}: it is truncated"
            )
        _, version, code, self.sequences, documents = HEADER.unpack(head)
        if version != 1 or code not in _TYPES:
            raise DataError(
                f"data.files: {path} must have version 1 and integer tokens, but has version {version} and type {code}"
            )
        expected = HEADER.size + 12 * self.sequences + 8 * documents
        if size < expected:
            raise DataError(f"data.files: {path} must have {expected} bytes, but has {size}: it is truncated")
        self.dtype = _TYPES[code]
        """numpy's name of the ids' type."""
        self.sizes = self._numbers("<i4", HEADER.size, self.sequences)
        """Tokens of each sequence."""
        self.offsets = self._numbers("<i8", HEADER.size + 4 * self.sequences, self.sequences)
        """Place of each sequence in the .bin, in bytes."""
        self.first_sequences = self._numbers("<i8", HEADER.size + 12 * self.sequences, documents)
        """First sequence of each document; one number more than there are documents."""

    def begins(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return the places in [start, start + count), in tokens, at which documents begin, rising.

        The index must be one in which sequences follow each other without gaps, as `PairWriter` writes it. Reads as
        much as finding them takes: the logarithm of the number of documents.
        """
        size = np.dtype(self.dtype).itemsize
        # The last entry is the end of the last document.
        documents = self.first_sequences[:-1]
        first, last = (bisect_left(documents, place * size, key=self._offset) for place in (start, start + count))
        found: npt.NDArray[np.int64] = self.offsets[documents[first:last]]
        return found // size

    def _offset(self, sequence: int) -> int:
        # Documents without sequences at the end begin behind the last one.
        return int(self.offsets[sequence]) if sequence < self.sequences else sys.maxsize

    def _numbers(self, dtype: str, start: int, count: int) -> npt.NDArray[Any]:
        # numpy cannot map nothing.
        found = np.memmap(self.path, dtype, "r", start, (count,)) if count else np.empty(0, dtype)
        # Single numbers of a plain array are read several times as fast.
        return found.view(np.ndarray)
