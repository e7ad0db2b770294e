"""The work on one unit, wherever it is done: its documents are read, encoded, and written. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from trainer.config.schema import RecordKind, TridentConfig
from trainer.corpus.document import BadDocument, BadRecord, Document, EmptyRecord
from trainer.corpus.read import read_unit, read_unit_records
from trainer.corpus.units import InputFile, Unit
from trainer.data.build.encoder import TextEncoder
from trainer.data.build.example_encoder import ExampleEncoder
from trainer.data.build.spool import Item
from trainer.data.build.unit_result import Facts
from trainer.data.build.work_folder import WorkFolder
from trainer.data.examples import record_keys
from trainer.data.tokenizer import Tokenizer, load_tokenizer

At = Callable[[str], None]
"""Is told what is being read, as errors name it, whenever a part of the work is done."""


class Encoder(Protocol):
    """The way from the items of a unit to its results."""

    def encode(self, items: Iterable[Item], path: Path) -> Facts:
        """Write the results of a unit and return their numbers."""


@dataclass(frozen=True)
class Task:
    """A unit together with the files that it is of: all that a worker must be handed."""

    unit: Unit
    files: tuple[InputFile, ...]

    @classmethod
    def of(cls, unit: Unit, files: Sequence[InputFile]) -> Task:
        """Return the task of a unit of some files."""
        own = sorted({span.file for span in unit.spans})
        places = {number: place for place, number in enumerate(own)}
        spans = tuple(replace(span, file=places[span.file]) for span in unit.spans)
        return cls(replace(unit, spans=spans), tuple(files[number] for number in own))

    @property
    def told(self) -> str:
        """The unit in words."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0].path}{more}"


def items_of(config: TridentConfig, task: Task) -> Iterator[Item]:
    """Yield the documents or records of a unit, and what cannot be read; at most `data.max_documents` good ones.

    Raises:
        DataError: the source cannot be read at all.
    """
    data = config.data
    items: Iterator[Item]
    if data.records is RecordKind.text:
        items = read_unit(data, task.files, task.unit)
    else:
        items = read_unit_records(data, task.files, task.unit, record_keys(data))
    return items if data.max_documents is None else _first_ones(items, data.max_documents)


def _first_ones(items: Iterator[Item], limit: int) -> Iterator[Item]:
    """Yield items up to some number of good ones. A fault may be found when the chunks of a document are taken."""
    good, faults = 0, 0

    def noted(chunks: Iterator[str]) -> Iterator[str]:
        nonlocal faults
        try:
            yield from chunks
        except BadDocument:
            faults += 1
            raise

    for item in items:
        if isinstance(item, BadRecord | EmptyRecord):
            yield item
            continue
        if good == limit:
            return
        before = faults
        if isinstance(item, Document):
            item.chunks = noted(item.chunks)
        yield item
        # Of one that other units have parts of, an empty part stays.
        is_kept = faults == before or (isinstance(item, Document) and (item.continues or item.is_open))
        good += is_kept


def encoder_of(config: TridentConfig, work: WorkFolder, at: At) -> Encoder:
    """Return the encoder of a config's records, with the tokenizer of the work folder.

    Raises:
        DataError: tokenizer or chat template cannot be used.
    """
    tokenizer: Tokenizer = load_tokenizer(work.tokenizer)
    kind = TextEncoder if config.data.records is RecordKind.text else ExampleEncoder
    return kind(config, tokenizer, at)
