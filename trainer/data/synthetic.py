"""A token stream with known structure: what a model can learn of it can be computed. No torch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

BRANCHES = 4
"""Successors of a token, equally likely."""


def successors(vocab_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the tokens that may follow each token, [vocab_size, BRANCHES], not necessarily different."""
    generator = np.random.default_rng([seed, vocab_size])
    return generator.integers(0, vocab_size, size=(vocab_size, BRANCHES), dtype=np.int64)


def synthetic_tokens(count: int, vocab_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `count` tokens of a first-order Markov chain over the vocabulary; the same for the same arguments."""
    table = successors(vocab_size, seed)
    choices = np.random.default_rng([seed, 1]).integers(0, BRANCHES, size=count)
    tokens = np.empty(count, dtype=np.int64)
    token = 0
    for position, choice in enumerate(choices.tolist()):
        token = int(table[token, choice])
        tokens[position] = token
    return tokens


def conditional_entropy(vocab_size: int, seed: int) -> float:
    """Return the entropy of the next token given the last, in nats, over all tokens alike: the least loss in reach."""
    entropies = []
    for row in successors(vocab_size, seed):
        counts = np.unique(row, return_counts=True)[1] / BRANCHES
        entropies.append(-sum(p * math.log(p) for p in counts.tolist()))
    return float(np.mean(entropies))
