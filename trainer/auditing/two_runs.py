"""The first step at which two runs read different samples, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from trainer.auditing.history import History, Span
from trainer.config.keys import flatten, shown_value
from trainer.config.written import differences
from trainer.data.ledger import short_ledger
from trainer.data.picks import Rows
from trainer.errors import DataError

if TYPE_CHECKING:
    from trainer.auditing.proof import TokensOf

_DECIDE = ("data.", "tokenizer.", "train.seed", "model.seq_length", "model.vocab_size", "batch.")
_DECIDE_NOTHING = ("data.cache_dir", "data.prefetch_steps", "batch.micro_batch_size")


@dataclass(frozen=True)
class Comparison:
    """The steps that two runs have in common."""

    last: int
    """Last step that both have read."""
    first_difference: int | None
    """First step whose samples differ; None: no step's do."""
    reasons: tuple[str, ...]
    """Sentences that say why; those that hold from the first difference on."""
    same_hash: int
    """Last step behind which both wrote down the same hash; 0: none."""
    other_hash: int | None
    """First step behind which they wrote down different hashes."""
    is_exact: bool = True
    """False if tokens are gone, and the first difference is only known to be no later."""


def compare(one: History, other: History, tokens_of: TokensOf) -> Comparison:
    """Compare what two runs read. Tokens are looked at only where the runs read different streams.

    Raises:
        DataError: tokens must be looked at, and are gone.
    """
    last = min(one.last, other.last)
    same_hash, other_hash = _hashes(one, other, last)
    found = None
    for first, end in _pieces(one, other, last):
        mine, theirs = one.span_of(first), other.span_of(first)
        if mine is None or theirs is None:
            continue
        try:
            found = _first_in(mine, theirs, first, end, tokens_of)
        except DataError:
            if other_hash is None:
                raise
            reasons = tuple(_reasons(one, other, other_hash))
            return Comparison(last, other_hash, reasons, same_hash, other_hash, is_exact=False)
        if found is not None:
            break
    if found is None and other_hash is not None:
        # The folders say the same, but the runs wrote down that they read different tokens.
        reason = "their folders say the same, but the hashes behind the step differ: audit each run alone"
        return Comparison(last, other_hash, (reason,), same_hash, other_hash)
    reasons = tuple(_reasons(one, other, found)) if found is not None else ()
    return Comparison(last, found, reasons, same_hash, other_hash)


def _hashes(one: History, other: History, last: int) -> tuple[int, int | None]:
    """Return the last step with the same hash, and the first with different ones, of those up to `last`."""
    same, parted = 0, None
    theirs = {witness.step: witness.ledger for witness in other.witnesses}
    for witness in one.witnesses:
        held = theirs.get(witness.step)
        if held is None or witness.step > last:
            continue
        if _number(witness.ledger) == _number(held):
            same = witness.step if parted is None else same
        elif parted is None:
            parted = witness.step
    return same, parted


def _number(ledger: str | int) -> int:
    return short_ledger(ledger) if isinstance(ledger, str) else ledger


def _pieces(one: History, other: History, last: int) -> Iterator[tuple[int, int]]:
    """Return the first and the last step of pieces in which neither run begins a span or changes its batch."""
    begins = {1, last + 1}
    for history in (one, other):
        for span in history.spans:
            ramp = (step + 1 for step, _ in span.stretch.sizes.warmup)
            begins.update(step for step in (span.stretch.step, span.last + 1, *ramp) if step <= last)
    for first, following in pairwise(sorted(begins)):
        yield first, following - 1


def _first_in(mine: Span, theirs: Span, first: int, last: int, tokens_of: TokensOf) -> int | None:
    """Return the first step of a piece whose samples differ."""
    facts = [
        (span.stretch.position_of(first), span.stretch.sizes.at(first), span.stretch.seq_length)
        for span in (mine, theirs)
    ]
    streams = [(one.stream, one.sample_length, one.segments) for one in (mine.stretch, theirs.stretch)]
    if streams[0] == streams[1]:
        return None if facts[0] == facts[1] else first
    if facts[0][1:] != facts[1][1:]:
        return first
    sides = [(tokens_of(span.run), span.stretch) for span in (mine, theirs)]
    for tokens, stretch in sides:
        tokens.check(stretch)
    for step in range(first, last + 1):
        a, b = (tokens.rows(stretch, step) for tokens, stretch in sides)
        if not _are_same(a, b):
            return step
    return None


def _are_same(a: Rows, b: Rows) -> bool:
    pairs = ((a.ids, b.ids), (a.labels, b.labels), (a.begins, b.begins))
    return all(x is y if x is None or y is None else np.array_equal(x, y) for x, y in pairs)


def _reasons(one: History, other: History, step: int) -> Iterator[str]:
    mine, theirs = one.span_of(step), other.span_of(step)
    assert mine is not None
    assert theirs is not None
    a, b = mine.stretch, theirs.stretch
    values = flatten(one.config), flatten(other.config)
    for key in differences(one.config, other.config):
        if key.startswith(_DECIDE) and key not in _DECIDE_NOTHING:
            yield f"{key} is {shown_value(values[0][key])} and {shown_value(values[1][key])}"
    sizes = [stretch.sizes.at(step) for stretch in (a, b)]
    if sizes[0] != sizes[1]:
        yield f"the step has {sizes[0]} sequences and {sizes[1]}"
    if a.seq_length != b.seq_length:
        yield f"its sequences have {a.seq_length} tokens and {b.seq_length}"
    if a.sample_length != b.sample_length:
        yield f"samples have {a.sample_length} tokens and {b.sample_length}, the length with which each run began"
    if a.stream != b.stream:
        yield f"the streams are others ({a.stream} and {b.stream}): their tokens, seed or data.max_samples"
    places = [stretch.position_of(step) for stretch in (a, b)]
    if places[0] != places[1]:
        yield f"the step begins at token {places[0]:,} of the stream and at {places[1]:,}"
    for history in (one, other):
        for back in history.returns:
            if back.step < step:
                yield f"{history.run} left out {back.left_out:,} tokens behind step {back.step}, to which it went back"
