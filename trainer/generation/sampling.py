"""The choice of the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.errors import NumericsError
from trainer.generation.options import GenerateOptions


@dataclass(frozen=True)
class Sampling:
    """The way in which a token is chosen. Each step takes what the one before left, in this order."""

    repetition_penalty: float = 1.0
    """Logits of tokens that the text has are divided by it where they are positive, else multiplied (arXiv 1909.05858,
    section 4.1); as in transformers the prompt's tokens count."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Keep this many likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest likeliest tokens whose probability reaches this (nucleus, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Keep tokens that have at least this share of the likeliest one's probability (arXiv 2407.01082)."""

    @classmethod
    def of(cls, options: GenerateOptions) -> Sampling:
        """Return what the options of `trident generate` ask for."""
        names = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
        return cls(**{name: getattr(options, name) for name in names})


def next_token(
    logits: torch.Tensor,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    used: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw one token for each row. A row's token depends on its own logits and generator alone.

    Args:
        logits: [B, V] fp32; ids that must not be drawn are -inf.
        sampling: the way.
        generators: one a row, on the logits' device; not touched where the temperature is 0.
        used: [B, V] bool, tokens that each text has; needed for a repetition penalty.

    Returns:
        [B] int64.

    Raises:
        NumericsError: the likeliest token's logit is NaN or infinite.
    """
    if sampling.repetition_penalty != 1:
        assert used is not None, "a repetition penalty needs to know the tokens of the text"
        punished = torch.where(logits < 0, logits * sampling.repetition_penalty, logits / sampling.repetition_penalty)
        logits = torch.where(used, punished, logits)
    largest = logits.max(dim=-1, keepdim=True).values
    if not largest.isfinite().all():
        raise NumericsError("the logits of a token must be finite, but are not: the weights hold NaN or Inf")
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    # Relative to the largest and in double precision: no temperature, however small, gives an infinity or a NaN.
    scaled = (logits - largest).double() / sampling.temperature
    probabilities = _cut(scaled, sampling).softmax(dim=-1)
    # A row by itself: one generator for all rows would let a text depend on its place among the others.
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])


def _cut(scaled: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return the logits with -inf for what top-k, top-p and min-p do not keep."""
    if 0 < sampling.top_k < scaled.shape[-1]:
        # By index and not by value, so that equal logits do not let more than top_k through.
        kept = scaled.topk(sampling.top_k, dim=-1).indices
        dropped = torch.ones_like(scaled, dtype=torch.bool).scatter(-1, kept, False)
        scaled = scaled.masked_fill(dropped, float("-inf"))
    if sampling.top_p < 1:
        ordered, index = scaled.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= sampling.top_p)
        scaled = scaled.masked_fill(dropped, float("-inf"))
    if sampling.min_p > 0:
        # The likeliest has 0 here, so that the exponential is the share of its probability.
        scaled = scaled.masked_fill(scaled.exp() < sampling.min_p, float("-inf"))
    return scaled
