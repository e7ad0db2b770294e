"""Tokens to predict, each once, with the tokens before them that the model reads for that. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """One sequence for the model, and the tokens that it shall predict at its end."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    """Tokens after the last `len(targets)` inputs."""


def rolling_windows(tokens: Sequence[int], prefix: int, seq_length: int, stride: int) -> Iterator[Window]:
    """Yield the windows of one document: every token is predicted once, from tokens of the document before it.

    The first window predicts as many tokens as fit. Each further one moves on by at most `stride` tokens, predicts
    those, and reads as many before them as there is room for. This is the rolling log-likelihood of the Language Model
    Evaluation Harness, whose `context_len` is `seq_length - stride + 1`; its tasks have `stride = seq_length`.

    Args:
        tokens: those of the document.
        prefix: token before the first one.
        seq_length: largest number of inputs.
        stride: tokens that a further window predicts, at most `seq_length`.
    """
    ids = (prefix, *tokens)
    predicted = 0
    while predicted < len(tokens):
        count = min(seq_length if predicted == 0 else stride, len(tokens) - predicted)
        end = predicted + count
        yield Window(ids[max(0, end - seq_length) : end], ids[end + 1 - count : end + 1])
        predicted = end
