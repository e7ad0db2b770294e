"""The documents of tokens on disk: all of them, or those that begin in a random sample of stretches. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.data.token_layouts import Stretches, TokenFile
from trainer.inspection.seen import Facts, Ids, SeenDocument

MOST_TOKENS = 1 << 25
"""Number of tokens that are read if not all are wanted."""
STRETCH = 1 << 16
"""Tokens of a stretch of the sample: the documents that begin in it are seen."""
_BLOCK = 1 << 20
"""Tokens that are read at once."""
_MOST_OF_ONE = 1 << 22
"""Tokens that are read of one document of a sample."""


class Stream(Protocol):
    """Tokens, document after document, as a `ShardSet` has them."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def tokens(self, start: int, count: int) -> Ids:
        """Return the ids at `start` to `start + count - 1`, `[count]`."""

    def begins(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Return whether a document begins at each of the tokens `start` to `start + count - 1`, `[count]`."""


class GivenFile:
    """A file of ids that another program wrote, as a stream.

    Args:
        file: the file. Where each document begins takes 8 bytes a document, unless an id says it.
    """

    def __init__(self, file: TokenFile) -> None:
        self._ids = file.ids()
        self._ended_by = file.ended_by
        self._begins = np.zeros(min(1, len(self._ids)), dtype=np.int64)
        if file.ended_by is None and file.documents is not None:
            self._begins = _first_tokens(file.documents())

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._ids)

    def tokens(self, start: int, count: int) -> Ids:
        """Return ids. See `Stream`."""
        return self._ids[start : start + count]

    def begins(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Return where documents begin. See `Stream`."""
        found = np.zeros(count, dtype=np.bool_)
        if self._ended_by is not None:
            first = max(0, start - 1)
            found[first + 1 - start :] = self._ids[first : start + count - 1] == self._ended_by
            found[:1] |= start == 0
            return found
        first, last = np.searchsorted(self._begins, [start, start + count])
        found[self._begins[first:last] - start] = True
        return found


def _first_tokens(stretches: Iterator[Stretches]) -> npt.NDArray[np.int64]:
    """Return the places at which documents begin, rising."""
    found = [np.zeros(0, dtype=np.int64)]
    for some in stretches:
        full = some.lengths > 0
        documents = some.documents[full]
        found.append(some.starts[full][np.diff(documents, prepend=-1) != 0])
    return np.unique(np.concatenate(found))


class TokenSource:
    """Shards of ids.

    Args:
        facts: what is known of them.
        parts: the tokens of each part, by its name.
        most_tokens: number of tokens that a sample has.
    """

    def __init__(self, facts: Facts, parts: Mapping[str, Stream], most_tokens: int = MOST_TOKENS) -> None:
        self.facts = facts
        self.is_sampled = False
        self.empty = 0
        self.seen_share: float | None = 1.0
        self._parts = {name: shards for name, shards in parts.items() if len(shards)}
        self._most_tokens = most_tokens

    def documents(self, everything: bool, seed: int) -> Iterator[SeenDocument]:
        """Yield documents. See `Source`."""
        total = sum(map(len, self._parts.values()))
        self.is_sampled = not everything and total > self._most_tokens
        draws = np.random.default_rng(seed)
        covered = 0
        for name, shards in self._parts.items():
            stretches = -(-len(shards) // STRETCH)
            chosen: Sequence[int] = range(stretches)
            if self.is_sampled:
                wanted = max(1, min(stretches, self._most_tokens * len(shards) // (total * STRETCH)))
                # The first one is always read: a single document may begin nowhere else.
                others = draws.choice(max(1, stretches - 1), wanted - 1, replace=False) + 1
                chosen = sorted([0, *others.tolist()])
            for number in chosen:
                covered += min(STRETCH, len(shards) - number * STRETCH)
                self.seen_share = covered / total
                yield from self._beginning_in(name, shards, number * STRETCH)

    def faults(self) -> Sequence[str]:
        """Return nothing: what is no document cannot be told from one."""
        return ()

    def fault_count(self) -> int:
        """Return 0."""
        return 0

    def _beginning_in(self, name: str, shards: Stream, start: int) -> Iterator[SeenDocument]:
        end = min(start + STRETCH, len(shards))
        begins = (np.flatnonzero(shards.begins(start, end - start)) + start).tolist()
        # Tokens without boundaries are one document.
        begins = [0, *begins] if start == 0 and begins[:1] != [0] else begins
        for place, begin in enumerate(begins):
            behind = begins[place + 1] if place + 1 < len(begins) else _next_begin(shards, end)
            yield self._seen(name, shards, begin, behind - begin)

    def _seen(self, name: str, shards: Stream, begin: int, count: int) -> SeenDocument:
        digest = hashlib.blake2b(str(count).encode(), digest_size=8)
        read = min(count, _MOST_OF_ONE) if self.is_sampled else count
        for place in range(begin, begin + read, _BLOCK):
            digest.update(shards.tokens(place, min(_BLOCK, begin + read - place)).tobytes())
        # Mapped, and not copied, where one shard holds it.
        ids: Ids = shards.tokens(begin, read)
        return SeenDocument(name, int.from_bytes(digest.digest(), "little"), True, tokens=count, ids=ids)


def _next_begin(shards: Stream, start: int) -> int:
    """Return the place of the first document that begins at or behind a place, or the end of the tokens."""
    for place in range(start, len(shards), _BLOCK):
        found = np.flatnonzero(shards.begins(place, min(_BLOCK, len(shards) - place)))
        if len(found):
            return place + int(found[0])
    return len(shards)
