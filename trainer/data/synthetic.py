"""A token stream with known structure, so that it can be computed how well a model can predict it. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BRANCHES = 4
"""Number of successors of a token, equally likely."""
_CONVERGED = 1e-12
_MOST_ROUNDS = 10_000


def successors(vocab_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the tokens that may follow each token, [vocab_size, BRANCHES], not necessarily different."""
    generator = np.random.default_rng([seed, vocab_size])
    return generator.integers(0, vocab_size, size=(vocab_size, BRANCHES), dtype=np.int64)


def synthetic_tokens(count: int, vocab_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Return `count` tokens of a first-order Markov chain over the vocabulary; the same for the same arguments."""
    table = successors(vocab_size, seed).tolist()
    choices = np.random.default_rng([seed, 1]).integers(0, BRANCHES, size=count)
    tokens = np.empty(count, dtype=np.int64)
    token = 0
    for position, choice in enumerate(choices.tolist()):
        token = table[token][choice]
        tokens[position] = token
    return tokens


def conditional_entropy(vocab_size: int, seed: int) -> float:
    """Return the entropy of the next token given the last, in nats: the least mean loss possible on a long stream."""
    table = successors(vocab_size, seed)
    alike = (table[:, :, None] == table[:, None, :]).sum(axis=2)
    # A successor that m of the branches lead to has probability m / BRANCHES.
    entropies = -np.log(alike / BRANCHES).mean(axis=1)
    return float(_visits(table) @ entropies)


def _visits(table: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the share of a long stream that each token has. Tokens with more predecessors come more often."""
    vocab_size = len(table)
    shares = np.zeros(vocab_size)
    shares[0] = 1.0
    for _ in range(_MOST_ROUNDS):
        arrived = np.bincount(table.ravel(), np.repeat(shares / BRANCHES, BRANCHES), vocab_size)
        # Half stays where it is: the long-run shares are the same, and a chain with a period converges too.
        new = (shares + arrived) / 2
        if float(np.abs(new - shares).sum()) < _CONVERGED:
            break
        shares = new
    return new
