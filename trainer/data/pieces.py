"""The documents of a source in order, as texts or as tokens, and on which side of the split each is. No torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from trainer.config.schema import TridentConfig
from trainer.corpus.read import documents
from trainer.data.split import is_held_out, split_document
from trainer.errors import DataError
from trainer.progress import current

Pieces = Iterator[tuple[bool, npt.NDArray[np.int64]]]
"""(True if held out, tokens) of documents in order."""


def split_texts(config: TridentConfig) -> Iterator[tuple[bool, str]]:
    """Yield (True if held out, text) of the documents of a text source, in order, a long one in pieces.

    Raises:
        DataError: the source cannot be read.
    """
    for text in documents(config.data):
        current().beat()
        yield from split_document(text, config.data.validation_fraction)


def megatron_pieces(config: TridentConfig) -> Pieces:
    """Yield (True if held out, tokens) of the documents of data.source=megatron, in order.

    Raises:
        DataError: files cannot be read, or an id is not in `model.vocab_size`.
    """
    from trainer.data.megatron import token_documents

    limit = config.model.vocab_size or 0
    for tokens in token_documents(config.data):
        if tokens.min() < 0 or tokens.max() >= limit:
            raise DataError(
                f"token ids of data.files must be in [0, model.vocab_size ({limit})), but one is "
                f"{tokens.max() if tokens.max() >= limit else tokens.min()}"
            )
        yield is_held_out(tokens.tobytes().hex(), config.data.validation_fraction), tokens


def synthetic_pieces(config: TridentConfig) -> Pieces:
    """Yield (True if held out, tokens) of the two parts of data.source=synthetic."""
    from trainer.data.synthetic import synthetic_tokens

    assert config.model.vocab_size is not None, "validation asks for it"
    tokens = synthetic_tokens(config.data.synthetic_tokens, config.model.vocab_size, config.train.seed)
    held_out = int(len(tokens) * config.data.validation_fraction)
    yield False, tokens[: len(tokens) - held_out]
    yield True, tokens[len(tokens) - held_out :]
