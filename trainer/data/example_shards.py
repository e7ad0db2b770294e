"""The shards of examples: packed sequences of ids, and the marks beside them. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from trainer.config.schema import TooLong, TridentConfig
from trainer.data.answers import Answered, answered
from trainer.data.chat_template import KEY
from trainer.data.end_of_text import SETTINGS
from trainer.data.examples import Example, examples, template_of
from trainer.data.megatron_pair import PairWriter
from trainer.data.packing import Packer
from trainer.data.split import is_held_out
from trainer.data.token_files import MARKS, TRAIN, VALIDATION, Packed, ShardWriter, shard_prefix
from trainer.data.token_manifest import Shard
from trainer.data.tokenizer import FileTokenizer, Tokenizer
from trainer.errors import DataError
from trainer.files import write_atomically
from trainer.progress import current

_BATCH = 256


@dataclass
class _Counts:
    """Numbers of examples and tokens so far."""

    examples: int = 0
    """Examples that are in sequences."""
    tokens: int = 0
    learned: int = 0
    dropped: int = 0
    truncated: int = 0
    emptied: int = 0
    """Examples that are left out since none of their tokens is learned."""
    too_long: str = ""
    """The first of those that are too long, as the error names it."""


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


def keep_template(config: TridentConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the template that chats are learned with into the folder of the tokenizer, for those who write with it.

    Raises:
        DataError: as `template_of`.
    """
    template = template_of(config, tokenizer.read, _eos_token(tokenizer))
    if template is None:
        return
    file = folder / SETTINGS
    held = json.loads(file.read_text(encoding="utf-8"))
    write_atomically(file, json.dumps({**template.tokens, **held, KEY: template.source}, ensure_ascii=False) + "\n")


def write_examples(
    config: TridentConfig, tokenizer: Tokenizer, folder: Path, dtype: str
) -> tuple[dict[str, Shard], Packed]:
    """Write the examples of a config's source, packed into sequences; return a shard a part and what is known of them.

    Args:
        config: a validated config.
        tokenizer: makes the tokens.
        folder: existing folder of the shards.
        dtype: type of the ids in the files.

    Raises:
        DataError: a record is not of the form, or an example is longer than a sequence and data.too_long=error.
    """
    counts, length = _Counts(), config.model.seq_length
    with ExitStack() as stack:
        places: dict[str, _Place] = {}
        for part in (TRAIN, VALIDATION):
            prefix = shard_prefix(folder, part)
            ids = stack.enter_context(PairWriter(prefix, dtype))
            marks = stack.enter_context(ShardWriter(prefix.with_name(prefix.name + MARKS), "uint8"))
            places[part] = _Place(Packer(length, tokenizer.eos_id), ids, marks)
        for example, found in _tokenised(config, tokenizer):
            fitted = _fitted(config, example, found, counts)
            if fitted is not None:
                held_out = is_held_out(example.text, config.data.validation_fraction)
                places[VALIDATION if held_out else TRAIN].add(fitted)
        if counts.too_long:
            raise DataError(
                f"each example must have at most model.seq_length ({length}) tokens, but {counts.dropped} of "
                f"{counts.dropped + counts.emptied + counts.examples} have more, the first is {counts.too_long}; set "
                "data.too_long=drop or truncate, or raise model.seq_length"
            )
        for place in places.values():
            place.finish()
    packed = Packed(
        length, counts.examples, counts.tokens, counts.learned, counts.dropped, counts.truncated, counts.emptied
    )
    shards = {part: place.ids.shard(marks_blake2b=place.marks.digest.hexdigest()) for part, place in places.items()}
    return shards, packed


def _eos_token(tokenizer: Tokenizer) -> str | None:
    return tokenizer.eos_token if isinstance(tokenizer, FileTokenizer) else None


def _tokenised(config: TridentConfig, tokenizer: Tokenizer) -> Iterator[tuple[Example, Answered]]:
    source = examples(config, template_of(config, tokenizer.read, _eos_token(tokenizer)))
    while batch := list(islice(source, _BATCH)):
        current().beat()
        yield from zip(batch, answered(tokenizer, batch), strict=True)


def _fitted(config: TridentConfig, example: Example, found: Answered, counts: _Counts) -> Answered | None:
    """Return an example that fits into a sequence and teaches something, or None; count it in `counts`."""
    length, too_long = config.model.seq_length, config.data.too_long
    if len(found.ids) > length:
        if too_long is not TooLong.truncate:
            counts.dropped += 1
            if too_long is TooLong.error and not counts.too_long:
                counts.too_long = f"{example.origin} with {len(found.ids)}"
            return None
        counts.truncated += 1
        found = Answered(found.ids[:length], found.counted[:length])
    # Nothing is before the first token that could predict it.
    learned = sum(found.counted[1:])
    if learned == 0:
        counts.emptied += 1
        return None
    counts.examples += 1
    counts.tokens += len(found.ids)
    counts.learned += learned
    return found
