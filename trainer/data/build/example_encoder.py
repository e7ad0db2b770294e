"""The chats or prompts of a unit turned into tokens and the marks of those that are learned. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from trainer.config.schema import TooLong, TridentConfig
from trainer.corpus.document import BadRecord, Document, EmptyRecord, Record
from trainer.data.answers import Answered, answered
from trainer.data.build.encoder import HASH_BYTES, UnitRules
from trainer.data.build.spool import Item
from trainer.data.build.unit_result import BEGINS, DROPPED, EMPTIED, TRUNCATED, Facts, UnitWriter
from trainer.data.examples import Example, example_of, template_of
from trainer.data.split import utf8
from trainer.data.tokenizer import FileTokenizer, Tokenizer
from trainer.errors import DataError

_BATCH = 256


class ExampleEncoder:
    """Encodes the records of units. Each is a piece, also one that is left out: it has no tokens.

    Args:
        config: says what a record holds, and what is done with bad and with long ones.
        tokenizer: makes the ids.
        at: is told what is being read whenever a batch is done.

    Raises:
        DataError: there is no chat template.
    """

    def __init__(self, config: TridentConfig, tokenizer: Tokenizer, at: Callable[[str], None]) -> None:
        self._config = config
        self._rules = UnitRules.of(config, tokenizer)
        self._tokenizer = tokenizer
        self._at = at
        end = tokenizer.eos_token if isinstance(tokenizer, FileTokenizer) else None
        self._template = template_of(config, tokenizer.read, end)

    def encode(self, items: Iterable[Item], path: Path) -> Facts:
        """Write the results of a unit and return their numbers.

        Args:
            items: what the unit holds.
            path: the file of the results.

        Raises:
            DataError: a record is bad, and such records are not left out.
            OSError: the file cannot be written.
        """
        with UnitWriter(path, self._rules.dtype, has_marks=True) as writer:
            batch: list[Example] = []
            for item in items:
                example = self._example(item)
                if isinstance(example, BadRecord):
                    if not self._rules.skips:
                        raise example.error()
                    writer.skip(example)
                    continue
                batch.append(example)
                if len(batch) == _BATCH:
                    self._write(batch, writer)
                    batch = []
            self._write(batch, writer)
            return writer.facts()

    def _example(self, item: Item) -> Example | BadRecord:
        assert isinstance(item, Record | BadRecord), "records are read as such"
        if isinstance(item, BadRecord):
            return item
        try:
            return example_of(self._config.data, item, self._template)
        except DataError as error:
            if self._rules.skips:
                return BadRecord(item.origin, str(error), _excerpt(item))
            raise

    def _write(self, batch: list[Example], writer: UnitWriter) -> None:
        for example, found in zip(batch, answered(self._tokenizer, batch), strict=True):
            content = utf8(example.text)
            fitted, flags = self._fitted(found)
            if flags & DROPPED and not writer.note:
                writer.note = f"{example.origin} with {len(found.ids)}"
            writer.add_ids(np.array(fitted.ids, np.uint32), np.array(fitted.counted, np.uint8))
            writer.grow_text(len(content), flags)
            writer.end_piece(self._rules.fractions.part_of(content))
            if self._rules.hashes:
                writer.add_hash(hashlib.blake2b(content, digest_size=HASH_BYTES).digest())
        if batch:
            self._at(batch[-1].origin)

    def _fitted(self, found: Answered) -> tuple[Answered, int]:
        """Return what of an example goes into a sequence, and the flags of its piece."""
        length, flags = self._config.model.seq_length, BEGINS
        if len(found.ids) > length:
            if self._config.data.too_long is not TooLong.truncate:
                return Answered([], []), flags | DROPPED
            flags |= TRUNCATED
            found = Answered(found.ids[:length], found.counted[:length])
        # Nothing is before the first token that could predict it.
        if not any(found.counted[1:]):
            return Answered([], []), flags | EMPTIED
        return found, flags


def _excerpt(record: Record) -> bytes:
    return str(dict(record.fields)).encode("utf-8", "replace")
