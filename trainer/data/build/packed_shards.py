"""Tokenised chats or prompts packed into sequences, in order. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.schema import TooLong, TridentConfig
from trainer.data.answers import Answered
from trainer.data.build.chosen import Chosen
from trainer.data.build.unit_result import DROPPED, EMPTIED, TRUNCATED
from trainer.data.megatron_pair import PairWriter
from trainer.data.packing import Packer
from trainer.data.token_files import MARKS, Packed, ShardWriter, shard_prefix
from trainer.data.token_manifest import Shard
from trainer.errors import DataError


@dataclass(frozen=True)
class _Place:
    """The files of one part of the data."""

    packer: Packer
    ids: PairWriter
    marks: ShardWriter

    def add(self, example: Answered) -> None:
        """Put an example into a sequence, and write what is finished."""
        for ids, marks in self.packer.add(example):
            self.ids.append(ids)
            self.marks.append(marks)

    def finish(self) -> None:
        """Write the sequences that are left."""
        for ids, marks in self.packer.rest():
            self.ids.append(ids)
            self.marks.append(marks)


class PackedShards:
    """The shards of packed sequences, one a part. A context manager.

    Args:
        config: a validated config.
        folder: folder of the shards.
        parts: names of the parts.
        dtype: type of the ids.
        filler: id behind the last example of a sequence.
    """

    def __init__(self, config: TridentConfig, folder: Path, parts: Sequence[str], dtype: str, filler: int) -> None:
        self._config = config
        self._stack = ExitStack()
        self._places: dict[str, _Place] = {}
        self._examples = self._tokens = self._learned = 0
        self._dropped = self._truncated = self._emptied = 0
        self._too_long = ""
        length = config.model.seq_length
        for part in parts:
            prefix = shard_prefix(folder, part)
            ids = self._stack.enter_context(PairWriter(prefix, dtype))
            marks = self._stack.enter_context(ShardWriter(prefix.with_name(prefix.name + MARKS), "uint8"))
            self._places[part] = _Place(Packer(length, filler), ids, marks)

    def __enter__(self) -> PackedShards:
        return self

    def __exit__(self, *fault: Any) -> bool | None:
        return self._stack.__exit__(*fault)

    def add(self, unit: Chosen) -> None:
        """Put the examples of a unit into sequences."""
        result, keep = unit.result, unit.keep
        flags, lengths, parts = result.flags(), result.lengths(), result.parts()
        ends = np.cumsum(lengths)
        counted = {flag: int(((flags & flag) > 0)[keep].sum()) for flag in (DROPPED, EMPTIED, TRUNCATED)}
        self._dropped += counted[DROPPED]
        self._emptied += counted[EMPTIED]
        self._truncated += counted[TRUNCATED]
        if counted[DROPPED] and not self._too_long:
            self._too_long = result.note
        total = int(ends[-1]) if len(ends) else 0
        ids, marks = result.ids(0, total), result.marks(0, total)
        places = list(self._places.values())
        for piece in np.flatnonzero(keep & (lengths > 0)):
            here = slice(int(ends[piece] - lengths[piece]), int(ends[piece]))
            found = Answered(ids[here].tolist(), (marks[here] > 0).tolist())
            self._examples += 1
            self._tokens += len(found.ids)
            self._learned += sum(found.counted[1:])
            places[parts[piece]].add(found)

    def check(self) -> None:
        """Check that no example is too long, if none may be.

        Raises:
            DataError: one is.
        """
        if self._dropped == 0 or self._config.data.too_long is not TooLong.error:
            return
        raise DataError(
            f"each example must have at most model.seq_length ({self._config.model.seq_length}) tokens, but "
            f"{self._dropped} of {self._dropped + self._emptied + self._examples} have more, the first is "
            f"{self._too_long}; set data.too_long=drop or truncate, or raise model.seq_length"
        )

    def finish(self) -> None:
        """Write the sequences that are left."""
        for place in self._places.values():
            place.finish()

    def shards(self) -> dict[str, tuple[Shard, ...]]:
        """Return the shards, once the files are closed."""
        return {
            part: (place.ids.shard(marks_blake2b=place.marks.digest.hexdigest()),)
            for part, place in self._places.items()
        }

    def facts(self) -> Packed:
        """Return what is known of the sequences."""
        return Packed(
            self._config.model.seq_length,
            *(self._examples, self._tokens, self._learned),
            *(self._dropped, self._truncated, self._emptied),
        )
