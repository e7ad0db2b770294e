"""The names, types and facts of the files of a cached folder, and files that grow. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

TRAIN, VALIDATION = "train", "validation"
"""Names of the two parts of the data."""
MARKS = ".marks"
"""Suffix of the file of marks that lies beside the ids of packed examples."""
ENDS = ".ends"
"""Suffix of the file of the number of tokens up to the end of each document, int64, where no index has them."""
EXTENTS = ".extents"
"""Suffix of the file of the ids that a shard has of a file elsewhere, int64: for each stretch of them its place in the
shard and its place in the file."""


@dataclass(frozen=True)
class Packed:
    """Facts about examples that are packed into sequences, of training and validation together."""

    seq_length: int
    examples: int
    """Examples in the sequences."""
    tokens: int
    """Tokens of these examples, without those that fill up the sequences."""
    learned: int
    """Tokens of them that count for the loss."""
    dropped: int
    """Examples that are left out because they are longer than a sequence."""
    truncated: int
    """Examples whose end is left out."""
    emptied: int
    """Examples that are left out because none of their tokens would count, truncated ones among them."""


class ShardWriter:
    """A growing file of numbers, such as marks. A context manager; the file is durable when it ends.

    Args:
        path: path of the file.
        dtype: type of the numbers; the caller knows that each fits.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.count = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> ShardWriter:
        return self

    def append(self, numbers: npt.NDArray[np.integer[Any]]) -> None:
        """Write numbers at the end."""
        content = numbers.astype(self._dtype).tobytes()
        self._file.write(content)
        self.digest.update(content)
        self.count += len(numbers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def dtype_for(vocab_size: int) -> str:
    """Return the smaller type that holds the ids 0 to vocab_size - 1; every reader of Megatron pairs knows both."""
    return "uint16" if vocab_size <= 1 << 16 else "int32"


def shard_prefix(folder: Path, part: str, number: int = 0) -> Path:
    """Return the path of a shard of a part, counted from 0, without its suffix."""
    return folder / f"{part}-{number:05}"


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file of a folder, by its path in it."""
    files: Iterable[Path] = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
