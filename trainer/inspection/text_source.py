"""The documents of files of text: all of them, or those of a random sample of units. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from trainer.config.schema import DataConfig
from trainer.corpus.cutting import cut
from trainer.corpus.document import BadDocument, BadRecord, Document, EmptyRecord
from trainer.corpus.read import read_unit
from trainer.corpus.units import Compression, InputFile, Kind, Span, Unit
from trainer.data.tokenizer import Tokenizer
from trainer.inspection.seen import BEGINNING, MOST_FAULTS, Facts, Ids, SeenDocument

MOST_BYTES = 1 << 25
"""Bytes of text that are read if not all are wanted; with a tokenizer, an eighth of them."""
UNIT_BYTES = 1 << 18
"""Bytes of a unit of the sample."""
_MOST_UNITS = 1 << 14
_BATCH = 256
"""Documents that are made tokens of at once."""
_MOST_OF_ONE = 1 << 22
"""Bytes that are read of one document of a sample."""
_RATIO = 4
"""Bytes of content in a byte of a compressed file, about."""


class _Piece(NamedTuple):
    """A document or a part of one, and the group that it belongs to."""

    group: str
    document: Document


class TextSource:
    """Files of text.

    Args:
        facts: what is known of them.
        data: fields of the records.
        files: the files, as `input_files` returns them.
        tokenizer: makes tokens of them, or None.
        most_bytes: bytes that a sample has.
    """

    def __init__(
        self,
        facts: Facts,
        data: DataConfig,
        files: Sequence[InputFile],
        tokenizer: Tokenizer | None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.facts = facts
        self.is_sampled = False
        self.empty = 0
        self.seen_share: float | None = None
        self._seen_bytes = 0
        self._data = data
        self._files = files
        self._tokenizer = tokenizer
        self._most_bytes = most_bytes if tokenizer is None else most_bytes // 8
        self._faults: list[str] = []
        self._fault_count = 0
        self._read = 0
        self._groups = _groups([file.path for file in files])

    def documents(self, everything: bool, seed: int) -> Iterator[SeenDocument]:
        """Yield documents. See `Source`."""
        self.empty = self._fault_count = 0
        self.seen_share = None
        self._seen_bytes = 0
        self._faults.clear()
        content = sum(_content_bytes(file) for file in self._files)
        self.is_sampled = not everything and content > self._most_bytes
        pieces = self._sample(seed) if self.is_sampled else self._everything()
        found = self._seen(pieces)
        yield from found if self._tokenizer is None else _tokenised(found, self._tokenizer)

    def faults(self) -> Sequence[str]:
        """Return what could not be read. See `Source`."""
        return self._faults

    def fault_count(self) -> int:
        """Return how many records could not be read. See `Source`."""
        return self._fault_count

    def _seen(self, pieces: Iterator[_Piece]) -> Iterator[SeenDocument]:
        """Yield documents, put together where a piece is followed by its next one."""
        growing: _Growing | None = None
        for piece in pieces:
            if growing is not None and not (piece.document.continues and not self.is_sampled):
                yield growing.seen(is_whole=False)
                growing = None
            growing = growing or _Growing(piece.group, not piece.document.continues, self._tokenizer)
            is_whole = self._take(growing, piece.document)
            if piece.document.is_open and not self.is_sampled:
                growing.begins = growing.begins and is_whole
                continue
            yield growing.seen(is_whole=is_whole and growing.begins and not piece.document.is_open)
            growing = None
        if growing is not None:
            yield growing.seen(is_whole=False)

    def _take(self, growing: _Growing, document: Document) -> bool:
        """Read a document to its end, as far as it is in this piece; return whether that could be done."""
        try:
            for chunk in document.chunks:
                self._read += growing.add(chunk)
                if self.is_sampled and growing.text_bytes > _MOST_OF_ONE:
                    return False
        except BadDocument as bad:
            self._note(bad.record)
            return False
        return True

    def _note(self, record: BadRecord | EmptyRecord) -> None:
        if isinstance(record, EmptyRecord):
            self.empty += 1
            return
        self._fault_count += 1
        if len(self._faults) < MOST_FAULTS:
            self._faults.append(record.problem)

    def _everything(self) -> Iterator[_Piece]:
        for unit in cut(self._files):
            for found in read_unit(self._data, self._files, unit):
                if not isinstance(found, Document):
                    self._note(found)
                    continue
                yield _Piece(self._groups[found.origin.path], found)

    def _sample(self, seed: int) -> Iterator[_Piece]:
        """Yield the documents of units that are drawn at random, each with a chance by the bytes of its content."""
        blocks = np.array([max(1, -(-_content_bytes(file) // UNIT_BYTES)) for file in self._files])
        ends = np.cumsum(blocks)
        draws = np.random.default_rng(seed)
        drawn = draws.choice(int(ends[-1]), min(int(ends[-1]), _MOST_UNITS), replace=False)
        chosen: dict[int, list[int]] = {}
        left = self._most_bytes
        for block in map(int, drawn):
            index = int(np.searchsorted(ends, block, side="right"))
            chosen.setdefault(index, []).append(block - int(ends[index] - blocks[index]))
            left -= min(UNIT_BYTES, _content_bytes(self._files[index]))
            if left <= 0:
                break
        for index in sorted(chosen):
            yield from self._of_file(index, sorted(chosen[index]), int(blocks[index]))

    def _of_file(self, index: int, chosen: list[int], blocks: int) -> Iterator[_Piece]:
        """Yield the documents of some blocks of a file, or as many from its beginning where it cannot be entered."""
        file = self._files[index]
        if blocks == 1:
            spans, limit = [Span(0, 0, None)], None
        elif not file.is_divisible:
            spans, limit = [Span(0, 0, None)], len(chosen) * UNIT_BYTES
        elif file.kind is Kind.parquet:
            groups = [unit.spans[0] for unit in cut([file], UNIT_BYTES)]
            spans = [groups[place] for place in sorted({block * len(groups) // blocks for block in chosen})]
            limit = UNIT_BYTES
        else:
            size = file.size or 0
            spans, limit = [Span(0, b * UNIT_BYTES, min((b + 1) * UNIT_BYTES, size)) for b in chosen], None
        for number, span in enumerate(spans):
            self._seen_bytes += _content_bytes(file) if span.end is None else span.end - span.first
            whole = self.facts.content_bytes
            self.seen_share = self._seen_bytes / whole if whole else None
            before = self._read
            for found in read_unit(self._data, [file], Unit(number, (span,))):
                if not isinstance(found, Document):
                    self._note(found)
                    continue
                yield _Piece(self._groups[found.origin.path], found)
                if limit is not None and self._read - before >= limit:
                    break


class _Growing:
    """A document while it is read: what is held of it does not grow with it.

    Args:
        group: name of the group that it belongs to.
        begins: true if its first piece is read.
        tokenizer: makes tokens of a long one while it is read, or None.
    """

    def __init__(self, group: str, begins: bool, tokenizer: Tokenizer | None) -> None:
        self.begins = begins
        self.text_bytes = 0
        self._group = group
        self._tokenizer = tokenizer
        self._digest = hashlib.blake2b(digest_size=8)
        self._beginning: list[str] = []
        self._held = 0
        self._tokens: int | None = None
        self._ids: Ids | None = None

    def add(self, chunk: str) -> int:
        """Take the next characters, and return their bytes."""
        encoded = chunk.encode("utf-8", "replace")
        self._digest.update(encoded)
        self.text_bytes += len(encoded)
        if self._tokens is None and self._held + len(chunk) <= BEGINNING:
            self._beginning.append(chunk)
            self._held += len(chunk)
        else:
            self._add_long(chunk)
        return len(encoded)

    def seen(self, is_whole: bool) -> SeenDocument:
        """Return the document."""
        return SeenDocument(
            group=self._group,
            hash=int.from_bytes(self._digest.digest(), "little"),
            is_whole=is_whole,
            begins=self.begins,
            tokens=self._tokens,
            text_bytes=self.text_bytes,
            ids=self._ids,
            text="".join(self._beginning)[:BEGINNING],
        )

    def _add_long(self, chunk: str) -> None:
        if self._tokenizer is None:
            return
        for text in (chunk,) if self._ids is not None else ("".join(self._beginning), chunk):
            for place in range(0, len(text), BEGINNING):
                ids = self._tokenizer.encode(text[place : place + BEGINNING])
                self._tokens = (self._tokens or 0) + len(ids)
                self._ids = np.array(ids, dtype=np.int64) if self._ids is None else self._ids


def _tokenised(documents: Iterator[SeenDocument], tokenizer: Tokenizer) -> Iterator[SeenDocument]:
    while batch := list(islice(documents, _BATCH)):
        short = [place for place, document in enumerate(batch) if document.tokens is None]
        encoded = tokenizer.encode_batch([batch[place].text or "" for place in short])
        for place, ids in zip(short, encoded, strict=True):
            batch[place] = replace(batch[place], tokens=len(ids), ids=np.array(ids, dtype=np.int64))
        yield from batch


def _groups(paths: Sequence[str]) -> dict[str, str]:
    """Return for each path the first folder in which they differ, or its own name if they are all in one."""
    if len(paths) == 1:
        return {paths[0]: os.path.basename(paths[0])}
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return {path: os.path.relpath(path, common).partition("/")[0] for path in paths}


def _content_bytes(file: InputFile) -> int:
    if file.size is None:
        return UNIT_BYTES
    return file.size * (1 if file.compression is Compression.none else _RATIO)
