"""Documents of a data source, as tokens that are to be predicted, and the loss on them. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from trainer.config.schema import DataSource, TridentConfig
from trainer.config.schema_data import ID_FILES
from trainer.data.end_of_text import SETTINGS
from trainer.data.pieces import synthetic_pieces, texts_of
from trainer.data.ready_made import ready_made_pieces, token_sources
from trainer.data.tokenizer import Tokenizer
from trainer.errors import DataError
from trainer.evaluation.windows import Window, rolling_windows
from trainer.log import warn

_BATCH_DOCUMENTS = 256
_BATCH_WINDOWS = 512
"""Windows that are handed out at once: enough to sort them by length, few enough to hold."""
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Document:
    """One document."""

    prefix: int
    """Token that the model reads before the first one; it is not predicted."""
    tokens: Sequence[int]
    """Tokens that are predicted."""
    num_bytes: int | None
    """Bytes of its text in UTF-8; None if it has no text."""


@dataclass(frozen=True)
class MeanLoss:
    """The loss on texts, for a token in the mean."""

    loss: float
    """Nats a token."""
    bytes_per_token: float | None
    """Bytes of text in UTF-8 for each token; None if a text is not known."""

    @property
    def perplexity(self) -> float:
        """Perplexity a token: e to the power of the loss."""
        return math.exp(self.loss) if self.loss < _LARGEST_EXPONENT else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Bits for each byte of the text in UTF-8."""
        return None if not self.bytes_per_token else self.loss / math.log(2) / self.bytes_per_token

    def numbers(self) -> dict[str, float]:
        """Return the scores by the names of metrics; what is not known is left out."""
        found = {"loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


@dataclass(frozen=True)
class DocumentScores:
    """The loss on documents."""

    documents: int
    tokens: int
    num_bytes: int | None
    """Bytes of all texts in UTF-8; None if one of them has no text."""
    nats: float
    """Negative log-likelihood of all tokens together."""

    @property
    def mean(self) -> MeanLoss:
        """The loss on a token of theirs."""
        return MeanLoss(self.nats / self.tokens, None if self.num_bytes is None else self.num_bytes / self.tokens)


def mean_of(scores: Sequence[MeanLoss], weights: Sequence[float]) -> MeanLoss:
    """Return the loss on a text of which each source has a share of the tokens.

    Args:
        scores: loss on each source.
        weights: shares, up to a factor; all are alike where none is above 0.
    """
    weights = weights if any(weights) else [1.0] * len(scores)
    counted = [(one, weight / sum(weights)) for one, weight in zip(scores, weights, strict=True) if weight]
    has_text = all(one.bytes_per_token is not None for one, _ in counted)
    return MeanLoss(
        math.fsum(one.loss * share for one, share in counted),
        math.fsum((one.bytes_per_token or 0.0) * share for one, share in counted) if has_text else None,
    )


def read_documents(config: TridentConfig, tokenizer: Tokenizer | None, part: int | None) -> Iterator[Document]:
    """Yield the documents of a source, in order. Those that have nothing to predict are left out.

    Args:
        config: its `data.*` says the source, `model.vocab_size` and `train.seed` are those of the model's run.
        tokenizer: the model's; sources of text need it.
        part: place in `token_manifest.PARTS` of the part that is read, as `data.validation_fraction` and
            `data.test_fraction` divide the source; None for all of it.

    Raises:
        DataError: the source cannot be read, or a token is not in the vocabulary.
    """
    if config.data.source in (*ID_FILES, DataSource.synthetic):
        yield from _of_ids(config, tokenizer, part)
        return
    assert tokenizer is not None, "sources of text are refused without a tokenizer"
    prefix = prefix_of(tokenizer)
    texts = texts_of(config, part)
    while batch := list(islice(texts, _BATCH_DOCUMENTS)):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            if ids:
                yield Document(prefix, ids, len(text.encode("utf-8", errors="replace")))


def _of_ids(config: TridentConfig, tokenizer: Tokenizer | None, part: int | None) -> Iterator[Document]:
    eos_id = None if tokenizer is None else tokenizer.eos_id
    is_made = config.data.source in ID_FILES
    pieces = ready_made_pieces(config, token_sources(config, eos_id, warn)) if is_made else synthetic_pieces(config)
    for found, array in pieces:
        if part not in (None, found):
            continue
        ids = array.tolist()
        if tokenizer is None or config.data.source is DataSource.synthetic:
            # Nothing is known that stands before a document: its first token is read, and not predicted.
            document = Document(ids[0], ids[1:], None) if ids else None
        else:
            ids = ids[:-1] if ids[-1:] == [tokenizer.eos_id] else ids
            document = Document(prefix_of(tokenizer), ids, len(tokenizer.decode(ids).encode("utf-8")))
        if document is not None and document.tokens:
            yield document


def prefix_of(tokenizer: Tokenizer) -> int:
    """Return the token before a document: the one that begins texts, if the tokenizer has one, or that ends them."""
    settings = tokenizer.read(SETTINGS)
    try:
        named = json.loads(settings).get("bos_token") if settings else None
    except (ValueError, AttributeError):
        named = None
    text = named.get("content") if isinstance(named, dict) else named
    ids = tokenizer.encode(text) if isinstance(text, str) and text else []
    return ids[0] if len(ids) == 1 else tokenizer.eos_id


def score_documents(
    documents: Iterator[Document],
    seq_length: int,
    stride: int,
    score: Callable[[Sequence[Window]], Sequence[float]],
    name: str,
) -> DocumentScores:
    """Return the loss on documents.

    Args:
        documents: read as they are needed.
        seq_length: largest number of tokens that the model reads.
        stride: see `rolling_windows`.
        score: returns the log-probability of each window's targets, in nats.
        name: the key of the data, for errors.

    Raises:
        DataError: there is none.
    """
    count, tokens, num_bytes, nats = 0, 0, 0, 0.0
    has_text = True
    waiting: list[Window] = []
    for document in documents:
        count += 1
        tokens += len(document.tokens)
        has_text = has_text and document.num_bytes is not None
        num_bytes += document.num_bytes or 0
        for window in rolling_windows(document.tokens, document.prefix, seq_length, stride):
            waiting.append(window)
            if len(waiting) == _BATCH_WINDOWS:
                nats -= math.fsum(score(waiting))
                waiting = []
    nats -= math.fsum(score(waiting)) if waiting else 0.0
    if count == 0:
        raise DataError(f"{name} must give at least one document with text to evaluate on, but gave none")
    return DocumentScores(count, tokens, num_bytes if has_text else None, nats)
