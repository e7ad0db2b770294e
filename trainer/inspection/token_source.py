"""The documents of tokens on disk: all of them, or those that begin in a random sample of stretches. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from trainer.data.shard_set import ShardSet
from trainer.inspection.seen import Facts, Ids, SeenDocument

MOST_TOKENS = 1 << 25
"""Number of tokens that are read if not all are wanted."""
STRETCH = 1 << 16
"""Tokens of a stretch of the sample: the documents that begin in it are seen."""
_BLOCK = 1 << 20
"""Tokens that are read at once."""
_MOST_OF_ONE = 1 << 22
"""Tokens that are read of one document of a sample."""


class TokenSource:
    """Shards of ids.

    Args:
        facts: what is known of them.
        parts: the tokens of each part, by its name.
        most_tokens: number of tokens that a sample has.
    """

    def __init__(self, facts: Facts, parts: Mapping[str, ShardSet], most_tokens: int = MOST_TOKENS) -> None:
        self.facts = facts
        self.is_sampled = False
        self.seen_bytes = self.empty = 0
        self._parts = {name: shards for name, shards in parts.items() if len(shards)}
        self._most_tokens = most_tokens

    def documents(self, everything: bool, seed: int) -> Iterator[SeenDocument]:
        """Yield documents. See `Source`."""
        total = sum(map(len, self._parts.values()))
        self.is_sampled = not everything and total > self._most_tokens
        draws = np.random.default_rng(seed)
        for name, shards in self._parts.items():
            stretches = -(-len(shards) // STRETCH)
            chosen: Sequence[int] = range(stretches)
            if self.is_sampled:
                wanted = max(1, min(stretches, self._most_tokens * len(shards) // (total * STRETCH)))
                # The first one is always read: a single document may begin nowhere else.
                others = draws.choice(max(1, stretches - 1), wanted - 1, replace=False) + 1
                chosen = sorted([0, *others.tolist()])
            for number in chosen:
                yield from self._beginning_in(name, shards, number * STRETCH)

    def faults(self) -> Sequence[str]:
        """Return nothing: what is no document cannot be told from one."""
        return ()

    def fault_count(self) -> int:
        """Return 0."""
        return 0

    def _beginning_in(self, name: str, shards: ShardSet, start: int) -> Iterator[SeenDocument]:
        end = min(start + STRETCH, len(shards))
        begins = (np.flatnonzero(shards.begins(start, end - start)) + start).tolist()
        # Tokens without boundaries are one document.
        begins = [0, *begins] if start == 0 and begins[:1] != [0] else begins
        for place, begin in enumerate(begins):
            behind = begins[place + 1] if place + 1 < len(begins) else _next_begin(shards, end)
            yield self._seen(name, shards, begin, behind - begin)

    def _seen(self, name: str, shards: ShardSet, begin: int, count: int) -> SeenDocument:
        digest = hashlib.blake2b(str(count).encode(), digest_size=8)
        read = min(count, _MOST_OF_ONE) if self.is_sampled else count
        for place in range(begin, begin + read, _BLOCK):
            digest.update(shards.tokens(place, min(_BLOCK, begin + read - place)).tobytes())
        # Mapped, and not copied, where one shard holds it.
        ids: Ids = shards.tokens(begin, read)
        return SeenDocument(name, int.from_bytes(digest.digest(), "little"), True, tokens=count, ids=ids)


def _next_begin(shards: ShardSet, start: int) -> int:
    """Return the place of the first document that begins at or behind a place, or the end of the tokens."""
    for place in range(start, len(shards), _BLOCK):
        found = np.flatnonzero(shards.begins(place, min(_BLOCK, len(shards) - place)))
        if len(found):
            return place + int(found[0])
    return len(shards)
