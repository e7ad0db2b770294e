"""The findings of an inspection, as one value. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError
from trainer.inspection.exact_duplicates import Copies
from trainer.inspection.find import PATH, Inspected
from trainer.inspection.near_duplicates import (
    IDS,
    RESEMBLES,
    WORDS,
    Elements,
    NearDuplicates,
    found_with,
    near_duplicates,
    resemblance_error,
)
from trainer.inspection.seen import Facts, SeenDocument
from trainer.inspection.tally import MOST_RATIOS, Tally, shares

FREQUENT = 8
"""Number of ids that are listed: the most frequent, and the first of those that were not seen."""
_MOST_GROUPS = 8
_DECODED = 1 << 19
"""Ids that are decoded to count the bytes of their text."""


@dataclass(frozen=True)
class Lengths:
    """Lengths of the documents that were seen whole."""

    unit: str
    """`tokens` or `bytes`."""
    mean: float
    median: int
    p90: int
    p99: int
    longest: int
    histogram: tuple[tuple[int, int, int], ...]
    """Smallest and largest length of a bar, and its documents; bars double in width."""


@dataclass(frozen=True)
class IdUse:
    """One id and how often it was seen."""

    id: int
    token: str | None
    count: int


@dataclass(frozen=True)
class Vocabulary:
    """Use of the ids."""

    size: int | None
    """Number of ids; None if no vocabulary is known."""
    seen: int
    """Number of different ids that were seen."""
    unseen: int | None
    unseen_first: tuple[IdUse, ...]
    outside: int
    """Number of ids that were seen and are not of the vocabulary."""
    largest: int
    special: tuple[IdUse, ...]
    frequent: tuple[IdUse, ...]
    tokens: int
    """Number of ids that were counted."""


@dataclass(frozen=True)
class Report:
    """Everything that is shown."""

    facts: Facts
    is_sampled: bool
    seed: int
    documents: int
    """Number of documents that were seen whole."""
    pieces: int
    """Number of documents of which a part was seen."""
    tokens: int
    text_bytes: int
    estimated_documents: int | None
    """Number of documents of the whole, about; None where it is known or cannot be told."""
    lengths: Lengths
    bytes_per_token: float | None
    tokens_per_byte: tuple[float, ...]
    """Tokens a byte of a random sample of documents."""
    vocabulary: Vocabulary | None
    copies: Copies
    near: NearDuplicates
    shares: tuple[tuple[str, float], ...]
    """Share of each part or folder, in the unit of lengths."""
    empty: int
    """Records without a text that were passed."""
    fault_count: int
    faults: tuple[str, ...]
    samples: tuple[SeenDocument, ...]

    @property
    def whole_documents(self) -> int | None:
        """Number of documents of the whole, as well as it is known."""
        return self.facts.documents if self.facts.documents is not None else self.estimated_documents

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        found: dict[str, Any] = {
            name: value
            for name, value in vars(self).items()
            if name not in ("facts", "lengths", "vocabulary", "copies", "near", "samples", "tokens_per_byte")
        }
        ratio = self.bytes_per_token
        return {
            **asdict(self.facts),
            **found,
            "documents_in_all": self.facts.documents,
            "tokens_in_all": self.facts.tokens,
            "documents": self.documents,
            "tokens": self.tokens,
            "shares": dict(self.shares),
            "lengths": asdict(self.lengths),
            "tokens_per_byte": 1 / ratio if ratio else None,
            "vocabulary": None if self.vocabulary is None else asdict(self.vocabulary),
            "exact_duplicates": {**self.copies._asdict(), "share": self.copies.share},
            "near_duplicates": {
                **{name: value for name, value in asdict(self.near).items() if name != "pairs"},
                "pairs": len(self.near.pairs),
                "share": self.near.share,
                "sampling_error": self.near.sampling_error,
                "resemblance_at_least": RESEMBLES,
                "resemblance_error": resemblance_error(),
                "found_with": found_with(),
            },
            "samples": [_plain(sample) for sample in self.samples],
        }


def inspect(found: Inspected, shown: int, everything: bool, seed: int) -> Report:
    """Look at the documents of a source.

    Args:
        found: the source.
        shown: number of documents to be shown.
        everything: look at all of them, however many there are.
        seed: seed of what is drawn.

    Raises:
        DataError: the source cannot be read, or holds no document.
    """
    source, tokenizer = found.source, found.tokenizer
    facts = source.facts
    in_tokens = tokenizer is not None or facts.tokens is not None
    tally = Tally(in_tokens, facts.vocab_size, shown, seed)
    for document in source.documents(everything, seed):
        tally.add(document)
    if tally.documents + tally.pieces == 0:
        faults = [*source.faults(), "it has nothing but empty ones"]
        raise DataError(f"{PATH} must hold at least one document, but {facts.place} holds none: {faults[0]}")
    compared = tally.compared()
    return Report(
        facts=facts,
        is_sampled=source.is_sampled,
        seed=seed,
        documents=tally.documents,
        pieces=tally.pieces,
        tokens=tally.tokens,
        text_bytes=tally.text_bytes,
        estimated_documents=_estimated(facts, tally, source.seen_share) if source.is_sampled else tally.begun,
        lengths=_lengths(tally),
        bytes_per_token=_bytes_per_token(facts, tally, tokenizer),
        tokens_per_byte=tuple(tally.ratios()) or _decoded_ratios(compared, facts, tokenizer),
        vocabulary=_vocabulary(tally, facts, tokenizer) if in_tokens else None,
        copies=tally.exact.copies(),
        near=near_duplicates(_different(compared), IDS if facts.tokens is not None else WORDS, seed),
        shares=tuple(shares(_group_sizes(facts, tally), _MOST_GROUPS)),
        empty=source.empty,
        fault_count=source.fault_count(),
        faults=tuple(source.faults()),
        samples=tuple(tally.shown()),
    )


def _estimated(facts: Facts, tally: Tally, seen_share: float | None) -> int | None:
    return None if facts.documents is not None or not seen_share else round(tally.begun / seen_share)


def _different(compared: Sequence[tuple[int, Elements]]) -> list[Elements]:
    """Return the elements of the documents, of the same ones only the first."""
    return list(dict(reversed(compared)).values())[::-1]


def _group_sizes(facts: Facts, tally: Tally) -> list[tuple[str, int]]:
    if facts.parts:
        return [(part.name, part.tokens) for part in facts.parts if part.tokens]
    return list(tally.groups.items())


def _lengths(tally: Tally) -> Lengths:
    lengths = tally.lengths
    count = lengths.total()
    bars: dict[int, int] = {}
    for length, documents in lengths.items():
        bars[length.bit_length()] = bars.get(length.bit_length(), 0) + documents
    first, last = min(bars, default=0), max(bars, default=-1)
    return Lengths(
        unit="tokens" if tally.in_tokens else "bytes",
        mean=sum(length * documents for length, documents in lengths.items()) / max(1, count),
        median=tally.quantile(0.5),
        p90=tally.quantile(0.9),
        p99=tally.quantile(0.99),
        longest=max(lengths, default=0),
        histogram=tuple((1 << bits >> 1, (1 << bits) - 1, bars.get(bits, 0)) for bits in range(first, last + 1)),
    )


def _bytes_per_token(facts: Facts, tally: Tally, tokenizer: Tokenizer | None) -> float | None:
    if facts.tokens and facts.content_bytes:
        return facts.content_bytes / facts.tokens
    if tally.tokens and tally.text_bytes:
        return tally.text_bytes / tally.tokens
    if tokenizer is None:
        return None
    tokens = text_bytes = 0
    for _, elements in tally.compared():
        plain = _without_special(elements, tokenizer)
        tokens += len(plain)
        text_bytes += len(tokenizer.decode(plain).encode())
        if tokens > _DECODED:
            break
    return text_bytes / tokens if tokens else None


def _decoded_ratios(
    compared: Sequence[tuple[int, Elements]], facts: Facts, tokenizer: Tokenizer | None
) -> tuple[float, ...]:
    """Return tokens a byte of some documents of which only ids are known."""
    if tokenizer is None or facts.tokens is None:
        return ()
    found, tokens = [], 0
    for _, elements in compared[:MOST_RATIOS]:
        plain = _without_special(elements, tokenizer)
        size = len(tokenizer.decode(plain).encode())
        found += [len(plain) / size] if size else []
        tokens += len(plain)
        if tokens > _DECODED:
            break
    return tuple(found)


def _without_special(elements: Elements, tokenizer: Tokenizer) -> list[int]:
    special, size = tokenizer.special_ids, tokenizer.vocab_size
    return [id_ for id_ in elements.tolist() if id_ < size and id_ not in special]


def _vocabulary(tally: Tally, facts: Facts, tokenizer: Tokenizer | None) -> Vocabulary:
    counts = tally.id_counts()
    seen = int(np.count_nonzero(counts))
    is_known = facts.vocab_size is not None

    def use(id_: int) -> IdUse:
        token = None if tokenizer is None else tokenizer.token(id_)
        return IdUse(id_, token, int(counts[id_]) if id_ < len(counts) else 0)

    return Vocabulary(
        size=facts.vocab_size,
        seen=seen,
        unseen=len(counts) - seen if is_known else None,
        unseen_first=tuple(use(int(id_)) for id_ in np.flatnonzero(counts == 0)[:FREQUENT]) if is_known else (),
        outside=tally.outside,
        largest=tally.largest_id,
        special=tuple(use(id_) for id_ in sorted(tokenizer.special_ids)) if tokenizer is not None else (),
        frequent=tuple(use(id_) for id_ in tally.most_frequent(FREQUENT)),
        tokens=int(counts.sum()) + tally.outside,
    )


def _plain(sample: SeenDocument) -> Mapping[str, Any]:
    ids = None if sample.ids is None else sample.ids.tolist()
    return {
        "group": sample.group,
        "is_whole": sample.is_whole,
        "tokens": sample.tokens,
        "text_bytes": sample.text_bytes,
        "ids": ids,
        "end_ids": None if sample.end_ids is None else sample.end_ids.tolist(),
        "text": sample.text,
    }
