"""The shards of a part of the data as one stream of tokens: opened when read, mapped, never copied whole. No torch."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.data.megatron_index import PairIndex
from trainer.data.token_files import ENDS, EXTENTS, MARKS
from trainer.data.token_manifest import Shard

_Number = TypeVar("_Number", bound=np.generic)


class ShardSet:
    """The ids of shards, one behind the other. A place in the stream is found by the logarithm of their number.

    Args:
        folder: folder that relative names of shards begin in.
        shards: the shards in order.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._shards = [_OpenShard(folder, shard) for shard in shards if shard.tokens]
        self._starts = [0, *accumulate(one.shard.tokens for one in self._shards)]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._starts[-1]

    def tokens(self, start: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return the ids at `start` to `start + count - 1`, `[count]`: a read-only view where one shard holds them all.

        Raises:
            IndexError: the stream does not have them.
        """
        return self._joined(start, count, _OpenShard.read)

    def marks(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Return the marks of the ids at `start` to `start + count - 1`, `[count]`; see `packing`.

        Raises:
            IndexError: the stream does not have them.
        """
        return self._joined(start, count, lambda one, place, size: one.marks[place : place + size])

    def begins(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Return whether a document begins at each of the tokens `start` to `start + count - 1`, `[count]`.

        Raises:
            IndexError: the stream does not have them.
        """
        return self._joined(start, count, _OpenShard.begins)

    def _joined(
        self, start: int, count: int, read: Callable[[_OpenShard, int, int], npt.NDArray[_Number]]
    ) -> npt.NDArray[_Number]:
        if start < 0 or count < 1 or start + count > len(self):
            raise IndexError(f"tokens must be in [0, {len(self)}), but are {start} to {start + count - 1}")
        parts = [read(one, place, size) for one, place, size in self._touched(start, count)]
        return _concatenated(parts)

    def _touched(self, start: int, count: int) -> Iterator[tuple[_OpenShard, int, int]]:
        number, end = bisect_right(self._starts, start) - 1, start + count
        while start < end:
            size = min(end, self._starts[number + 1]) - start
            yield self._shards[number], start - self._starts[number], size
            start, number = start + size, number + 1


class _OpenShard:
    """A shard whose files are mapped when they are first read."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.shard = shard
        self._folder = folder
        self._path = folder / shard.name

    def read(self, place: int, size: int) -> npt.NDArray[np.integer[Any]]:
        """Return ids of the shard, `[size]`: a view where they are one stretch of the file."""
        if not self.shard.is_scattered:
            return self._file[place : place + size]
        extents, end, parts = self._extents, place + size, []
        number = bisect_right(extents[:, 0], place) - 1
        while place < end:
            begins, at = extents[number]
            stop = end if number + 1 == len(extents) else min(end, int(extents[number + 1, 0]))
            start = int(at) + place - int(begins)
            parts.append(self._file[start : start + stop - place])
            place, number = stop, number + 1
        return _concatenated(parts)

    @cached_property
    def _file(self) -> npt.NDArray[np.integer[Any]]:
        """Ids of the file: those of the shard or, if it is scattered, all."""
        shard, dtype = self.shard, np.dtype(self.shard.dtype).newbyteorder("<")
        all_tokens = (self._path.stat().st_size - shard.first_byte) // dtype.itemsize
        tokens = all_tokens if shard.is_scattered else shard.tokens
        # A plain array: slices of a memmap cost several times as much.
        return np.memmap(self._path, dtype, "r", shard.first_byte, (tokens,)).view(np.ndarray)

    @cached_property
    def _extents(self) -> npt.NDArray[np.int64]:
        """Place in the shard and place in the file of each stretch, `[stretches, 2]`."""
        return np.memmap(self._beside(EXTENTS), "<i8", "r").view(np.ndarray).reshape(-1, 2)

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        """Number of tokens up to the end of each document."""
        return np.memmap(self._beside(ENDS), "<i8", "r").view(np.ndarray)

    @cached_property
    def marks(self) -> npt.NDArray[np.uint8]:
        """Marks of the shard, `[tokens]`."""
        return np.memmap(self._path.with_suffix(MARKS), np.uint8, "r", 0, (self.shard.tokens,)).view(np.ndarray)

    @cached_property
    def _index(self) -> PairIndex:
        """Index beside the ids."""
        return PairIndex(self._path.with_suffix(".idx"))

    def begins(self, place: int, size: int) -> npt.NDArray[np.bool_]:
        """Return whether a document begins at each of the ids, `[size]`."""
        found = np.zeros(size, dtype=np.bool_)
        if self.shard.boundaries == "idx":
            found[self._index.begins(place, size) - place] = True
        elif self.shard.boundaries == "ends":
            # What a document ends before, another one begins at.
            first, last = (bisect_left(self._ends, end) for end in (place, place + size))
            found[self._ends[first:last] - place] = True
        if place == 0:
            found[0] = True
        return found

    def _beside(self, suffix: str) -> Path:
        return self._folder / f"{self.shard.beside}{suffix}"


def _concatenated(parts: list[npt.NDArray[_Number]]) -> npt.NDArray[_Number]:
    if len(parts) == 1:
        return parts[0]
    # Numpy would make floating-point numbers of signed and unsigned ones together.
    kinds = {part.dtype for part in parts}
    return np.concatenate(parts) if len(kinds) == 1 else np.concatenate([part.astype(np.int64) for part in parts])
