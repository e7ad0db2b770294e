"""The results of all units put together, in order, as shards. No torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.schema import Dedup, RecordKind, TridentConfig
from trainer.data.build.chosen import Chosen, Places, chosen, find_duplicates
from trainer.data.build.packed_shards import PackedShards
from trainer.data.build.unit_result import CONTINUES, OPEN, UnitResult
from trainer.data.build.work_folder import WorkFolder
from trainer.data.megatron_pair import PairWriter
from trainer.data.token_files import Packed, dtype_for, shard_prefix
from trainer.data.token_manifest import PARTS, Counts, Shard
from trainer.data.tokenizer import Tokenizer
from trainer.progress import current

SHARD_TOKENS = 1_000_000_000
"""Tokens from which on a shard ends with the next unit that ends with a document."""
SKIPPED = "skipped.jsonl"
"""File that lists the records that were left out."""
_COPIED_TOKENS = 1 << 19
Parts = Mapping[str, tuple[Shard, ...]]


@dataclass(frozen=True)
class Assembled:
    """The shards of a build, and what is known of them."""

    parts: Parts
    counts: Counts
    packed: Packed | None


def assemble(config: TridentConfig, tokenizer: Tokenizer, work: WorkFolder, places: Places, folder: Path) -> Assembled:
    """Write the shards of finished units.

    Args:
        config: a validated config.
        tokenizer: made the tokens.
        work: the folder of the results.
        places: the results.
        folder: an existing folder for the shards.

    Raises:
        DamagedUnit: a result is not whole.
        DataError: an example is longer than a sequence, and data.too_long=error.
        OSError: the disk is full.
    """
    data = config.data
    parts = PARTS if data.test_fraction > 0 else PARTS[:2]
    with tempfile.TemporaryDirectory(dir=folder) as scratch, ExitStack() as files:
        seen = find_duplicates(work, places, Path(scratch)) if data.dedup is Dedup.exact else None
        units = chosen(work, places, data.max_documents, seen)
        counting = _Counting(folder / SKIPPED)
        dtype = dtype_for(tokenizer.vocab_size)
        if data.records is RecordKind.text:
            writers = [files.enter_context(PartWriter(folder, part, dtype, tokenizer.eos_id)) for part in parts]
            for unit in counting.each(units):
                _write_text(unit, writers)
            files.close()
            return Assembled({one.part: one.shards for one in writers}, counting.counts(), None)
        packing = files.enter_context(PackedShards(config, folder, parts, dtype, tokenizer.eos_id))
        for unit in counting.each(units):
            packing.add(unit)
        packing.check()
        packing.finish()
        files.close()
        return Assembled(packing.shards(), counting.counts(), packing.facts())


@dataclass
class _Counting:
    """Counts of what was read, and the list of what was skipped."""

    path: Path
    read: int = 0
    empty: int = 0
    skipped: int = 0
    duplicates: int = 0

    def each(self, units: Iterator[Chosen]) -> Iterator[Chosen]:
        """Yield units, and count them."""
        with ExitStack() as files:
            file = None
            for unit in units:
                current().beat()
                self.read += unit.documents
                self.empty += unit.result.facts.empty
                self.duplicates += unit.duplicates
                if unit.result.facts.skipped:
                    file = file or files.enter_context(self.path.open("wb"))
                    file.writelines(unit.result.skipped())
                    self.skipped += unit.result.facts.skipped
                yield unit

    def counts(self) -> Counts:
        """Return the counts."""
        return Counts(read=self.read, empty=self.empty, skipped=self.skipped, duplicates=self.duplicates)


class PartWriter:
    """The shards of a part. A context manager.

    Args:
        folder: folder of the shards.
        part: name of the part.
        dtype: type of the ids.
        end: id that ends a document.
    """

    def __init__(self, folder: Path, part: str, dtype: str, end: int) -> None:
        self.part = part
        self.shards: tuple[Shard, ...] = ()
        self._folder = folder
        self._dtype = dtype
        self._end = np.array([end], np.dtype(dtype)).tobytes()
        self._text_bytes = 0
        self._is_open = False
        self._stack = ExitStack()
        self._pair = self._begun()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *fault: Any) -> bool | None:
        if fault[0] is None:
            self.end_document()
        suppressed = self._stack.__exit__(*fault)
        if fault[0] is None:
            self._note()
        return suppressed

    def append(self, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], text_bytes: int, is_open: bool) -> None:
        """Write documents at the end; the last one goes on with the next call if it is open."""
        self._pair.append_raw(ids.tobytes(), lengths, is_open)
        self._text_bytes += text_bytes
        self._is_open = is_open

    def end_document(self) -> None:
        """End the document that is open, if one is, since what follows is none of it."""
        if self._is_open:
            self.append(np.frombuffer(self._end, self._dtype), np.array([1]), 0, is_open=False)

    def end_unit(self) -> None:
        """End the shard if it is large enough."""
        if self._pair.tokens >= SHARD_TOKENS and not self._is_open:
            self._stack.close()
            self._note()
            self._pair = self._begun()

    def _begun(self) -> PairWriter:
        return self._stack.enter_context(
            PairWriter(shard_prefix(self._folder, self.part, len(self.shards)), self._dtype)
        )

    def _note(self) -> None:
        self.shards = (*self.shards, self._pair.shard(text_bytes=self._text_bytes))
        self._text_bytes = 0


def _write_text(unit: Chosen, writers: list[PartWriter]) -> None:
    result, keep = unit.result, unit.keep
    lengths, parts, flags, sizes = result.lengths(), result.parts(), result.flags(), result.text_bytes()
    continued = parts[0] if len(keep) and keep[0] and flags[0] & CONTINUES else len(writers)
    for number, writer in enumerate(writers):
        if number != continued:
            writer.end_document()
    place = 0
    for first, end in _groups(lengths):
        tokens = int(lengths[first:end].sum())
        owner = np.where(keep[first:end], parts[first:end], len(writers))
        for number, writer in enumerate(writers):
            mine = owner == number
            if not mine.any():
                continue
            text_bytes = int(sizes[first:end][mine].sum())
            is_open = bool(flags[end - 1] & OPEN) and bool(mine[-1])
            if tokens > _COPIED_TOKENS:
                _copy_long(result, (place, place + tokens), writer, text_bytes, is_open)
                continue
            ids = result.ids(place, place + tokens)
            ids = ids if mine.all() else ids[np.repeat(mine, lengths[first:end])]
            writer.append(ids, lengths[first:end][mine], text_bytes, is_open)
        place += tokens
    for writer in writers:
        writer.end_unit()


def _copy_long(
    result: UnitResult, place: tuple[int, int], writer: PartWriter, text_bytes: int, is_open: bool
) -> None:
    """Write a piece that is longer than what is copied at once."""
    first, end = place
    for at in range(first, end, _COPIED_TOKENS):
        ids = result.ids(at, min(end, at + _COPIED_TOKENS))
        is_last = at + _COPIED_TOKENS >= end
        writer.append(ids, np.array([len(ids)]), text_bytes if is_last else 0, is_open or not is_last)


def _groups(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of consecutive pieces that are copied together; one that is too long is alone."""
    ends = np.cumsum(lengths)
    first = held = 0
    while first < len(lengths):
        end = max(first + 1, int(np.searchsorted(ends, held + _COPIED_TOKENS, "right")))
        yield first, end
        first, held = end, int(ends[end - 1])
