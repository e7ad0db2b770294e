"""The shards of a part of the data as one stream of tokens: opened when read, mapped, never copied whole. No torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from trainer.data.megatron_index import PairIndex
from trainer.data.token_files import MARKS
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
        return self._joined(start, count, lambda one, place, size: one.ids[place : place + size])

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
        return self._joined(start, count, _begins)

    def _joined(
        self, start: int, count: int, read: Callable[[_OpenShard, int, int], npt.NDArray[_Number]]
    ) -> npt.NDArray[_Number]:
        if start < 0 or count < 1 or start + count > len(self):
            raise IndexError(f"tokens must be in [0, {len(self)}), but are {start} to {start + count - 1}")
        parts = [read(one, place, size) for one, place, size in self._touched(start, count)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

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
        self._path = folder / shard.name

    @cached_property
    def ids(self) -> npt.NDArray[np.integer[Any]]:
        """Ids of the shard, `[tokens]`."""
        shard = self.shard
        # A plain array: slices of a memmap cost several times as much.
        mapped = np.memmap(self._path, np.dtype(shard.dtype).newbyteorder("<"), "r", shard.first_byte, (shard.tokens,))
        return mapped.view(np.ndarray)

    @cached_property
    def marks(self) -> npt.NDArray[np.uint8]:
        """Marks of the shard, `[tokens]`."""
        return np.memmap(self._path.with_suffix(MARKS), np.uint8, "r", 0, (self.shard.tokens,)).view(np.ndarray)

    @cached_property
    def index(self) -> PairIndex:
        """Index beside the ids."""
        return PairIndex(self._path.with_suffix(".idx"))


def _begins(one: _OpenShard, place: int, size: int) -> npt.NDArray[np.bool_]:
    found = np.zeros(size, dtype=np.bool_)
    if one.shard.boundaries == "none":
        return found
    found[one.index.begins(place, size) - place] = True
    return found
