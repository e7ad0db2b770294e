"""The documents of a step: the samples that it read, decoded, with the places where documents begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trainer.auditing.history import History
from trainer.auditing.tokens import RunTokens
from trainer.data.picks import Rows
from trainer.data.tokenizer import Tokenizer
from trainer.errors import ConfigError

BOUNDARY = "⏐"
"""Mark between documents."""
EXCERPT = 160
"""Largest number of characters of a document that are shown."""
FEW_TOKENS = 64
"""Number of tokens that are decoded for an excerpt."""


@dataclass(frozen=True)
class Part:
    """A document, or the part of one, in a sequence."""

    tokens: int
    """Tokens of it that the sequence holds."""
    is_begun_before: bool
    """True if the document begins in front of the sequence."""
    text: str
    """Beginning of it, decoded; its ids where there is no tokenizer."""


@dataclass(frozen=True)
class SeenSequence:
    """A sequence of a step."""

    row: int
    """Place in the global batch."""
    sources: tuple[str, ...]
    """Name of the source of each sample that it touches; empty for data that are no blend."""
    samples: tuple[int, ...]
    """Index of each sample that it touches, in its source."""
    first_token: int
    """First token of the sequence in the tokens of its source."""
    parts: tuple[Part, ...]


def seen_sequences(history: History, tokens: RunTokens, step: int) -> list[SeenSequence]:
    """Return the sequences of a step's global batch, in order.

    Args:
        history: what the run's folder says.
        tokens: the tokens of the run that read the step.
        step: the step.

    Raises:
        ConfigError: no step of this number was read.
        DataError: the tokens are gone, or they are not those that the run read.
    """
    span = history.span_of(step)
    if span is None:
        raise ConfigError(f"--step must be a step that {history.run} has read, 1 to {history.last}, but is {step}")
    stretch = span.stretch
    tokens.check(stretch)
    rows, picks = tokens.rows(stretch, step), tokens.picks(stretch, step)
    length, sample_length = stretch.seq_length, stretch.sample_length
    first_place = stretch.position_of(step) // sample_length
    found = []
    for row in range(stretch.sizes.at(step)):
        start = stretch.position_of(step) + row * length
        places = range(start // sample_length - first_place, (start + length - 1) // sample_length - first_place + 1)
        samples = tuple(int(picks.samples[place]) for place in places)
        sources = tuple(int(picks.sources[place]) for place in places)
        begins = _begins(
            tokens, rows, row, list(zip(sources, samples, strict=True)), start % sample_length, sample_length
        )
        parts = _parts(rows, row, begins, tokens.tokenizer)
        first = samples[0] * sample_length + start % sample_length
        found.append(SeenSequence(row, tuple(map(tokens.name_of, sources)), samples, first, parts))
    return found


def _begins(
    tokens: RunTokens, rows: Rows, row: int, samples: Sequence[tuple[int, int]], offset: int, sample_length: int
) -> list[bool]:
    """Return whether a document begins at each token of a sequence."""
    assert rows.ids is not None
    length = rows.ids.shape[1]
    if rows.begins is not None:
        return [bool(one) for one in rows.begins[row]]
    known = np.concatenate([tokens.begins(source, sample, sample_length) for source, sample in samples])
    return [bool(one) for one in known[offset : offset + length]]


def _parts(rows: Rows, row: int, begins: list[bool], tokenizer: Tokenizer | None) -> tuple[Part, ...]:
    assert rows.ids is not None
    ids = rows.ids[row]
    edges = [0, *(place for place, begun in enumerate(begins) if begun and place), len(ids)]
    found = []
    for first, end in pairwise(edges):
        text = _decoded([int(one) for one in ids[first : min(end, first + FEW_TOKENS)]], tokenizer)
        found.append(Part(end - first, first == 0 and not begins[0], text))
    return tuple(found)


def _decoded(ids: list[int], tokenizer: Tokenizer | None) -> str:
    text = " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)
    # One line, whatever the document holds: a terminal must not obey it.
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown if len(shown) <= EXCERPT else shown[: EXCERPT - 1] + "…"
