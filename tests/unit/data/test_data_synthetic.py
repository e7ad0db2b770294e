from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.data.synthetic import BRANCHES, conditional_entropy, successors, synthetic_tokens


def test_the_stream_is_the_same_for_the_same_arguments() -> None:
    tokens = synthetic_tokens(500, 64, 3)
    assert tokens.tolist() == synthetic_tokens(500, 64, 3).tolist()
    assert tokens[:200].tolist() == synthetic_tokens(200, 64, 3).tolist()
    assert tokens.tolist() != synthetic_tokens(500, 64, 4).tolist()
    assert tokens.tolist() != synthetic_tokens(500, 65, 3).tolist()
    assert tokens[:8].tolist() == [54, 51, 2, 6, 39, 17, 51, 6]


def test_every_step_is_one_of_the_successors() -> None:
    table = successors(40, 1)
    tokens = synthetic_tokens(5000, 40, 1)
    assert table.shape == (40, BRANCHES)
    assert len(synthetic_tokens(0, 40, 1)) == 0
    for last, token in zip([0, *tokens.tolist()], tokens.tolist(), strict=False):
        assert token in table[last]


def empirical_entropy(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], vocab_size: int) -> float:
    """Entropy of the next token given the last by counting, in nats."""
    counts = np.zeros((vocab_size, vocab_size))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    pairs = counts[counts > 0] / counts.sum()
    lasts = counts.sum(1)[counts.sum(1) > 0] / counts.sum()
    return float(-(pairs * np.log(pairs)).sum() + (lasts * np.log(lasts)).sum())


@pytest.mark.parametrize("vocab_size", [2, 5, 8, 16, 64])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_entropy_is_the_one_of_a_long_stream(vocab_size: int, seed: int) -> None:
    measured = empirical_entropy(synthetic_tokens(100_000, vocab_size, seed), vocab_size)
    assert conditional_entropy(vocab_size, seed) == pytest.approx(measured, abs=0.01)


def test_the_entropy_of_a_large_vocabulary_is_near_that_of_the_branches() -> None:
    assert conditional_entropy(1, 0) == 0
    assert conditional_entropy(20_000, 0) == pytest.approx(math.log(BRANCHES), abs=1e-3)
    assert conditional_entropy(20_000, 0) < math.log(BRANCHES)
