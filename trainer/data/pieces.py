"""The documents of a source in order, as texts or as tokens, and on which side of the split each is. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice

import numpy as np
import numpy.typing as npt

from trainer.config.schema import OnBadRecord, TridentConfig
from trainer.corpus.document import BadDocument
from trainer.corpus.read import documents, open_documents
from trainer.data.split import TRAIN_PART, VALIDATION_PART, Fractions, parts_of, utf8
from trainer.data.tokenizer import TRAINING_CHARACTERS
from trainer.progress import current

Pieces = Iterator[tuple[int, npt.NDArray[np.int64]]]
"""(place of the part in `token_manifest.PARTS`, tokens) of documents in order."""


def texts_of(config: TridentConfig, part: int | None) -> Iterator[str]:
    """Yield the texts of a part of a text source, in order, a long document in pieces.

    Args:
        config: its `data.*` says the source.
        part: place of the part in `token_manifest.PARTS`; None: all of them.

    Raises:
        DataError: the source cannot be read.
    """
    data = config.data
    fractions = Fractions(data.validation_fraction, data.test_fraction)
    for text in documents(data):
        current().beat()
        for found, run in groupby(parts_of((text,)), lambda text: fractions.part_of(utf8(text))):
            if part in (None, found):
                yield "".join(run)


def training_pieces(config: TridentConfig) -> Iterator[str]:
    """Yield the texts of a source that are not held out, for a tokenizer that is trained on them.

    Of a piece that is longer than such a training takes, only its beginning.

    Raises:
        DataError: the source cannot be read.
    """
    data = config.data
    fractions = Fractions(data.validation_fraction, data.test_fraction)
    for document in islice(open_documents(data), data.max_documents):
        current().beat()
        parts = parts_of(document.chunks)
        try:
            for part, run in groupby(parts, lambda text: fractions.part_of(utf8(text))):
                if part == TRAIN_PART:
                    yield "".join(_beginning(run))
        except BadDocument:
            if data.on_bad_record is OnBadRecord.error:
                raise


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    held = 0
    for text in texts:
        yield text
        held += len(text)
        if held >= TRAINING_CHARACTERS:
            return


def synthetic_pieces(config: TridentConfig) -> Pieces:
    """Yield (place of the part, tokens) of the two parts of data.source=synthetic."""
    from trainer.data.synthetic import synthetic_tokens

    assert config.model.vocab_size is not None, "validation asks for it"
    tokens = synthetic_tokens(config.data.synthetic_tokens, config.model.vocab_size, config.train.seed)
    held_out = int(len(tokens) * config.data.validation_fraction)
    yield TRAIN_PART, tokens[: len(tokens) - held_out]
    yield VALIDATION_PART, tokens[len(tokens) - held_out :]
