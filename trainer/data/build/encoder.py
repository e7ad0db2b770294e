"""The documents of a unit turned into its file of tokens, in memory that does not grow with them. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainer.config.schema import Dedup, OnBadRecord, TridentConfig
from trainer.corpus.document import BadDocument, BadRecord, Document, EmptyRecord
from trainer.data.build.segments import Segment, segments
from trainer.data.build.spool import Item
from trainer.data.build.unit_result import BEGINS, CONTINUES, OPEN, Facts, UnitWriter
from trainer.data.split import Fractions
from trainer.data.token_files import dtype_for
from trainer.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 16
"""Characters that are encoded together: the library is fastest while they and their tokens fit into a core's cache."""
BATCH_SEGMENTS = 1 << 10
"""Largest number of segments that are encoded together: the library's notes on each are larger than a very short one."""
HASH_BYTES = 16


@dataclass
class _Waiting:
    """A segment that is not encoded yet."""

    segment: Segment
    flags: int


@dataclass(frozen=True)
class UnitRules:
    """The keys by which any unit is encoded."""

    fractions: Fractions
    skips: bool
    """Bad records are left out."""
    hashes: bool
    """Results have a hash of each document."""
    dtype: str
    """Type of the ids."""

    @classmethod
    def of(cls, config: TridentConfig, tokenizer: Tokenizer) -> UnitRules:
        """Return those of a config."""
        data = config.data
        return cls(
            fractions=Fractions(data.validation_fraction, data.test_fraction),
            skips=data.on_bad_record is OnBadRecord.skip,
            hashes=data.dedup is Dedup.exact,
            dtype=dtype_for(tokenizer.vocab_size),
        )


class TextEncoder:
    """Encodes the documents of units.

    Args:
        config: says what is held out, and what is done with bad records.
        tokenizer: makes the ids.
        at: is told what is being read whenever a batch is done.
    """

    def __init__(self, config: TridentConfig, tokenizer: Tokenizer, at: Callable[[str], None]) -> None:
        self._rules = UnitRules.of(config, tokenizer)
        self._tokenizer = tokenizer
        self._end = np.array([tokenizer.eos_id], np.uint32)
        self.at = at

    def encode(self, items: Iterable[Item], path: Path) -> Facts:
        """Write the results of a unit and return their numbers.

        Args:
            items: what the unit holds.
            path: the file of the results.

        Raises:
            DataError: a record is bad, and such records are not left out.
            OSError: the file cannot be written.
        """
        with UnitWriter(path, self._rules.dtype) as writer:
            batch = _Batch(self, writer)
            for item in items:
                try:
                    if isinstance(item, EmptyRecord):
                        writer.empty += 1
                        continue
                    if isinstance(item, BadRecord):
                        raise BadDocument(item)
                    assert isinstance(item, Document), "texts are read as such"
                    self._add(item, batch, writer)
                except BadDocument as bad:
                    if not self._rules.skips:
                        raise bad.record.error() from bad
                    batch.forget_document()
                    writer.skip(bad.record)
                    if isinstance(item, Document) and (item.continues or item.is_open):
                        # The units beside this one have parts of it: this one's part is empty.
                        self._add(replace(item, chunks=iter(())), batch, writer)
            batch.flush()
            return writer.facts()

    def _add(self, document: Document, batch: _Batch, writer: UnitWriter) -> None:
        batch.begin_document(document)
        digest = hashlib.blake2b(digest_size=HASH_BYTES) if self._rules.hashes else None
        note = None if digest is None else digest.update
        flags = CONTINUES if document.continues else BEGINS
        for segment in segments(document.chunks, self._rules.fractions, self._is_safe, note):
            batch.add(segment, flags)
            flags = 0
        if document.is_open:
            batch.flag_last(OPEN)
        if digest is not None:
            writer.add_hash(digest.digest())
        batch.end_document()

    def _is_safe(self, before: str, behind: str) -> bool:
        whole, first, second = self._tokenizer.encode_arrays([before + behind, before, behind])
        return np.array_equal(whole, np.concatenate((first, second)))

    def write(self, waiting: list[_Waiting], writer: UnitWriter, on_document: Callable[[], None]) -> None:
        """Encode segments and write them."""
        encoded = self._tokenizer.encode_arrays([one.segment.text for one in waiting])
        for one, ids in zip(waiting, encoded, strict=True):
            if one.flags & (BEGINS | CONTINUES):
                on_document()
            writer.add_ids(ids)
            writer.grow_text(one.segment.text_bytes, one.flags)
            if one.segment.ends:
                if not one.flags & OPEN:
                    writer.add_ids(self._end)
                writer.end_piece(one.segment.part)


class _Batch:
    """Segments that wait to be encoded together, and the way back to the beginning of a document."""

    def __init__(self, encoder: TextEncoder, writer: UnitWriter) -> None:
        self._encoder = encoder
        self._writer = writer
        self._waiting: list[_Waiting] = []
        self._characters = 0
        self._first: int | None = None
        """Place in the waiting ones of the first segment of the document under way; None if it is written."""
        self._mark = writer.mark()
        self._is_within = False
        self._origin = ""

    def begin_document(self, document: Document) -> None:
        """Begin a document."""
        self._origin = str(document.origin)
        self._first, self._is_within = len(self._waiting), True

    def end_document(self) -> None:
        """End the document: it stays."""
        self._is_within = False

    def forget_document(self) -> None:
        """Forget the document under way, if there is one."""
        if not self._is_within:
            return
        if self._first is None:
            self._writer.rewind(self._mark)
        self._waiting = self._waiting[: self._first or 0]
        self._is_within = False

    def add(self, segment: Segment, flags: int) -> None:
        """Take a segment, behind those that are there."""
        if self._characters + len(segment.text) > BATCH_CHARACTERS or len(self._waiting) == BATCH_SEGMENTS:
            self.flush()
        self._waiting.append(_Waiting(segment, flags))
        self._characters += len(segment.text)

    def flag_last(self, flags: int) -> None:
        """Add flags to the last segment."""
        self._waiting[-1].flags |= flags

    def flush(self) -> None:
        """Encode and write all that wait."""
        waiting, self._waiting, self._characters = self._waiting, [], 0
        if waiting:
            self._encoder.write(waiting, self._writer, self._note_mark)
            self._encoder.at(self._origin)
        # A document of which no segment is here yet begins with the next one.
        self._first = None if self._first is not None and self._first < len(waiting) else 0

    def _note_mark(self) -> None:
        self._mark = self._writer.mark()
