"""Medians and paired ratios. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Spread:
    """A sample in three numbers."""

    median: float
    least: float
    most: float
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Return median, least and most of at least one value."""
    return Spread(median(values), min(values), max(values), len(values))


def paired(seconds: Sequence[float], base_seconds: Sequence[float], work: float = 1.0) -> Spread:
    """Return how many times as fast a contender is as the base, turn against neighbouring turn.

    Args:
        seconds: of the contender's turns.
        base_seconds: of the base's turns in the same rounds.
        work: tokens of the contender's turn / tokens of the base's.
    """
    return spread([work * base / mine for mine, base in zip(seconds, base_seconds, strict=True)])


H100_BF16_TFLOPS = 989.4
"""Dense bf16 peak of an H100 or H200 SXM, as its maker states it."""


def train_flops_per_token(parameters: int, layers: int, hidden: int, seq_length: int, *, causal: bool) -> float:
    """Return forward and backward FLOPs of one token: 6 N + 12 L h s, the attention term halved if causal.

    Source: PaLM, arXiv 2204.02311, appendix B. A causal model needs only half of the scores, and some tables count so;
    figures are comparable only within one convention.

    Args:
        parameters: all of them, a tied embedding once.
        layers: blocks.
        hidden: width.
        seq_length: tokens in a sequence.
        causal: count only the scores that the mask leaves.
    """
    attention = 12 * layers * hidden * seq_length
    return 6.0 * parameters + (attention / 2 if causal else attention)


def utilization(tokens_per_second: float, flops_per_token: float, tflops: float) -> float:
    """Return the share of `tflops` (10^12 FLOP/s) that a rate of tokens makes use of."""
    return tokens_per_second * flops_per_token / (tflops * 1e12)


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """Return the largest count from 1 to `limit` that fits, 0 if none does; what is smaller than one that fits, fits.

    Doubles until one does not fit, then halves the gap: about 2 log2(result) trials.
    """
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, bad * 2
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good
