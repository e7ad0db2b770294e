"""Best-fit packing: documents side by side in sequences of one length, none cut that fits into one. No torch.

A document that is longer than a sequence is cut into pieces of that length and a rest. Pieces are placed the longest
first, each into the fullest sequence that it fits into (best-fit decreasing). Source: Ding et al., "Fewer Truncations
Improve Language Modeling", arXiv 2404.10830, section 3. It is done in blocks of consecutive documents, so that memory
does not grow with the data. An index of the pieces of each sequence lies beside the shards; tokens are not copied.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainer.data.picks import EVERYTHING, ONE_SOURCE, Needs, Rows
from trainer.data.shard_set import ShardSet
from trainer.data.shared_cache import published, set_aside, silent, turn
from trainer.files import storage_faults, write_atomically
from trainer.progress import current

BLOCK_PIECES = 1 << 20
"""Pieces that are packed together."""
_SCANNED = 1 << 22
"""Tokens whose boundaries are read at a time."""
OFFSETS, STARTS, LENGTHS = "offsets.i64", "starts.i64", "lengths.i32"
FACTS = "facts.json"
_FILES = ((OFFSETS, "<i8"), (STARTS, "<i8"), (LENGTHS, "<i4"))
Pieces = npt.NDArray[np.int64]


class PackedPieces(NamedTuple):
    """The pieces of sequences, mapped."""

    offsets: npt.NDArray[np.int64]
    """[sequences + 1]: number of the first piece of each sequence, and behind them the number of all pieces."""
    starts: npt.NDArray[np.int64]
    """[pieces]: first token of each in the part's stream of tokens."""
    lengths: npt.NDArray[np.int32]
    """[pieces]: tokens of each; negative if its document goes on behind it."""
    tokens: int
    """Tokens of all pieces: the rest of the sequences is padding."""
    cuts: int
    """Pieces whose document goes on behind them."""

    def of(self, sequence: int) -> list[tuple[int, int, bool]]:
        """Return (first token, tokens, whether the document goes on behind it) of each piece of a sequence."""
        first, end = int(self.offsets[sequence]), int(self.offsets[sequence + 1])
        pairs = zip(self.starts[first:end].tolist(), self.lengths[first:end].tolist(), strict=True)
        return [(start, abs(length), length < 0) for start, length in pairs]


def packed_pieces(folder: Path, part: str, shards: ShardSet, length: int) -> PackedPieces:
    """Return the pieces of a part's sequences of `length` tokens, packing them first where that was not done yet.

    One process of a node does it, under a lock; all would write the same bytes.

    Raises:
        StorageError: the disk of the cache is full or read-only.
    """
    index = folder / f"best_fit-{part}-{length}"
    facts = _facts(index)
    if facts is None:
        with storage_faults(index), ExitStack() as held:
            held.enter_context(turn(index, lambda: _facts(index) is not None, silent))
            facts = _facts(index) or _made(index, shards, length)
    offsets, starts, lengths = (_mapped(index / name, kind) for name, kind in _FILES)
    return PackedPieces(offsets, starts, lengths, facts["tokens"], facts["cuts"])


def _facts(index: Path) -> dict[str, Any] | None:
    """Return the description of an index, or None unless every file of it is there in full size."""
    try:
        facts: dict[str, Any] = json.loads((index / FACTS).read_text(encoding="utf-8"))
        whole = all((index / name).stat().st_size == facts["sizes"][name] for name, _ in _FILES)
        return facts if whole and {"tokens", "cuts"} <= facts.keys() else None
    # A damaged description can be any JSON or none.
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _made(index: Path, shards: ShardSet, length: int) -> dict[str, Any]:
    if os.path.lexists(index):
        set_aside(index)
    return published(index, lambda partial: _write(partial, shards, length), lambda: _facts(index))


def _mapped(path: Path, kind: str) -> npt.NDArray[Any]:
    # numpy cannot map an empty file.
    return np.memmap(path, kind, "r").view(np.ndarray) if path.stat().st_size else np.empty(0, kind)


def _write(folder: Path, shards: ShardSet, length: int) -> dict[str, Any]:
    """Write the index, a block of documents at a time, and return its description."""
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name, _ in _FILES]
        offsets, starts, lengths = files
        offsets.write(np.zeros(1, "<i8").tobytes())
        written = tokens = cuts = 0
        for firsts, sizes in _blocks(shards, length):
            current().beat()
            ends, order = packed(np.abs(sizes), length)
            offsets.write((written + ends).astype("<i8").tobytes())
            starts.write(firsts[order].astype("<i8").tobytes())
            lengths.write(sizes[order].astype("<i4").tobytes())
            written += len(order)
            tokens, cuts = tokens + int(np.abs(sizes).sum()), cuts + int((sizes < 0).sum())
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    facts = {"tokens": tokens, "cuts": cuts, "sizes": {name: (folder / name).stat().st_size for name, _ in _FILES}}
    write_atomically(folder / FACTS, json.dumps(facts), "data.cache_dir")
    return facts


def packed(sizes: Pieces, length: int) -> tuple[Pieces, Pieces]:
    """Return the end of each sequence among the pieces in their new order, and that order.

    Args:
        sizes: tokens of each piece, 1 to `length`.
        length: tokens of a sequence.
    """
    sequences: list[list[int]] = []
    room: defaultdict[int, list[int]] = defaultdict(list)
    # A bit for each amount of room that some sequence has.
    has_room = 0
    for piece in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[piece])
        fitting = has_room >> size
        if fitting:
            left = size + (fitting & -fitting).bit_length() - 1
            sequence = room[left].pop()
            if not room[left]:
                has_room ^= 1 << left
            sequences[sequence].append(piece)
        else:
            left, sequence = length, len(sequences)
            sequences.append([piece])
        if left > size:
            room[left - size].append(sequence)
            has_room |= 1 << (left - size)
    ends = np.cumsum([len(one) for one in sequences], dtype=np.int64)
    # Inside a sequence in the order of the data.
    return ends, np.array([piece for one in sequences for piece in sorted(one)], dtype=np.int64)


def _blocks(shards: ShardSet, length: int) -> Iterator[tuple[Pieces, Pieces]]:
    """Yield starts and lengths, negative where the document goes on, of the pieces of consecutive documents."""
    held: list[tuple[Pieces, Pieces]] = []
    count = 0
    for first, end in _documents(shards):
        cut = _cut(first, end, length)
        held.append(cut)
        count += len(cut[0])
        if count >= BLOCK_PIECES:
            yield _joined(held)
            held, count = [], 0
    if held:
        yield _joined(held)


def _joined(held: list[tuple[Pieces, Pieces]]) -> tuple[Pieces, Pieces]:
    return np.concatenate([one for one, _ in held]), np.concatenate([one for _, one in held])


def _documents(shards: ShardSet) -> Iterator[tuple[Pieces, Pieces]]:
    """Yield first tokens and ends of documents, in order, some at a time."""
    total, begun = len(shards), 0
    for place in range(1, total, _SCANNED):
        found = place + np.flatnonzero(shards.begins(place, min(_SCANNED, total - place)))
        if len(found):
            yield np.concatenate([[begun], found[:-1]]), found
            begun = int(found[-1])
    if total:
        yield np.array([begun]), np.array([total])


def _cut(first: Pieces, end: Pieces, length: int) -> tuple[Pieces, Pieces]:
    """Return starts and signed lengths of the pieces of documents."""
    counts = -((first - end) // length)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(first, counts) + number * length
    left = np.repeat(end, counts) - starts
    return starts, np.where(left > length, -length, left)


class BestFitDataset:
    """Sample i is a sequence of whole documents, or pieces of long ones, and padding that counts for nothing.

    Args:
        shards: the tokens.
        pieces: pieces of each sequence.
        seq_length: tokens of a sequence.
        filler: id of the padding.
        ignored: label that does not count.
        is_told: samples say where documents begin.
        crosses: the last token of a document learns to predict the first one of the next in its sequence.
        max_samples: use only this many samples from the start.
    """

    def __init__(
        self,
        shards: ShardSet,
        pieces: PackedPieces,
        seq_length: int,
        filler: int,
        ignored: int,
        is_told: bool,
        crosses: bool,
        max_samples: int | None = None,
    ) -> None:
        self.seq_length = seq_length
        self._shards, self.pieces = shards, pieces
        self._filler, self._ignored = filler, ignored
        self._is_told, self._crosses = is_told, crosses
        available = len(pieces.offsets) - 1
        self._length = available if max_samples is None else min(available, max_samples)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def rows(self, index: int, needs: Needs = EVERYTHING) -> Rows:
        """Return one sample. See `Samples`."""
        if not 0 <= index < self._length:
            raise IndexError(f"sample must be in [0, {self._length}), but is {index}")
        pieces, size = self.pieces.of(index), self.seq_length
        ids = np.full(size, self._filler, dtype=np.int64)
        labels = np.full(size, self._ignored, dtype=np.int64)
        begins, counts = np.zeros((2, size), dtype=np.bool_)
        at = 0
        for number, (start, count, goes_on) in enumerate(pieces):
            end = at + count
            begins[at] = True
            counts[at : end - 1] = True
            if needs.ids or needs.labels:
                tokens = self._shards.tokens(start, count + goes_on)
                ids[at:end], labels[at : at + len(tokens) - 1] = tokens[:count], tokens[1:]
            counts[end - 1] = goes_on
            if not goes_on and self._crosses and number + 1 < len(pieces):
                counts[end - 1] = True
                if needs.labels:
                    labels[end - 1] = self._shards.tokens(pieces[number + 1][0], 1)[0]
            at = end
        # The padding is a document of its own, so that no token of the others sees it.
        begins[at:][:1] = True
        return Rows(
            ids if needs.ids else None,
            labels if needs.labels else None,
            begins if self._is_told else None,
            counts,
            ONE_SOURCE,
        )
