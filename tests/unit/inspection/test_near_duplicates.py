from __future__ import annotations

import numpy as np
import pytest

from trainer.inspection.near_duplicates import (
    BANDS,
    HASHES,
    MOST_ELEMENTS,
    RESEMBLES,
    ROWS,
    Elements,
    found_with,
    near_duplicates,
    resemblance_error,
    shingles,
    signatures,
    words_of,
)


def random_documents(count: int, length: int, seed: int = 0) -> list[Elements]:
    return list(np.random.default_rng(seed).integers(0, 50_000, (count, length)).astype(np.uint64))


def changed(document: Elements, share: float) -> Elements:
    """The document with its last part written anew."""
    kept = int(len(document) * (1 - share))
    fresh = np.random.default_rng(99).integers(60_000, 90_000, len(document) - kept).astype(np.uint64)
    return np.concatenate([document[:kept], fresh])


def resemblance(one: Elements, other: Elements, width: int) -> float:
    """The definition: shingles that both have, of those that either has."""
    first, second = ({tuple(e[i : i + width]) for i in range(len(e) - width + 1)} for e in (one, other))
    return len(first & second) / len(first | second)


def test_the_estimate_is_the_resemblance_within_its_error() -> None:
    document = random_documents(1, 600)[0]
    for share in (0.02, 0.1, 0.3, 0.6):
        other = changed(document, share)
        expected = resemblance(document, other, 8)
        first, second = signatures([shingles(document, 8), shingles(other, 8)], seed=3)
        # Four standard errors of HASHES draws: one seed in 15,000 would lie outside.
        assert float(np.mean(first == second)) == pytest.approx(expected, abs=4 * resemblance_error(expected) + 1e-9)


def test_the_mean_over_seeds_has_no_bias() -> None:
    document = random_documents(1, 300)[0]
    other = changed(document, 0.25)
    pair = [shingles(document, 5), shingles(other, 5)]
    found = [float(np.mean(np.equal(*signatures(pair, seed)))) for seed in range(64)]
    expected = resemblance(document, other, 5)
    # Four standard errors of 64 independent estimates.
    assert np.mean(found) == pytest.approx(expected, abs=4 * resemblance_error(expected) / 8)


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    documents = random_documents(400, 200)
    planted = [changed(documents[place], 0.04) for place in range(0, 40, 4)]
    found = near_duplicates([*documents, *planted], 8, seed=0)
    assert {(pair.first, pair.second) for pair in found.pairs} == {(4 * i, 400 + i) for i in range(10)}
    assert (found.documents, found.resembling) == (410, 20)
    assert found.share == 20 / 410
    assert found.sampling_error == pytest.approx((found.share * (1 - found.share) / 410) ** 0.5)


def test_pairs_below_the_limit_are_left_out() -> None:
    documents = random_documents(50, 400)
    assert near_duplicates([*documents, changed(documents[0], 0.5)], 8, seed=0).pairs == ()


def test_the_chance_of_being_looked_at_is_that_of_the_bands() -> None:
    assert BANDS * ROWS == HASHES
    assert found_with(0.0) == 0
    assert found_with(1.0) == 1
    assert found_with(RESEMBLES) > 0.999999
    assert found_with(0.3) == pytest.approx(1 - (1 - 0.3**4) ** 32)


def test_many_alike_documents_are_all_told_without_comparing_all() -> None:
    document = random_documents(1, 300)[0]
    alike = [np.concatenate([document, np.array([70_000 + i], dtype=np.uint64)]) for i in range(200)]
    found = near_duplicates(alike, 8, seed=0)
    assert found.resembling == 200
    assert len(found.pairs) < 200 * 199 / 2


def test_words_count_whatever_their_case_and_what_stands_between() -> None:
    assert words_of("Two words, here.").tolist() == words_of("two  WORDS here").tolist()
    assert words_of("two words").tolist() != words_of("words two").tolist()
    assert len(words_of("word " * (MOST_ELEMENTS + 5))) == MOST_ELEMENTS
    assert words_of("\ud800 lone").shape == (1,)


def test_short_and_empty_documents() -> None:
    empty = np.zeros(0, dtype=np.uint64)
    short = np.array([1, 2, 3], dtype=np.uint64)
    assert len(shingles(empty, 8)) == 0
    assert len(shingles(short, 8)) == 1
    assert near_duplicates([], 8, 0).documents == 0
    assert near_duplicates([empty], 8, 0).share == 0
    assert near_duplicates([short, empty, short], 8, 0).pairs[0][:2] == (0, 2)


def test_documents_are_hashed_alike_alone_and_together() -> None:
    shingled = [shingles(one, 8) for one in random_documents(30, 5000)]
    together = signatures(shingled, seed=1)
    alone = np.concatenate([signatures([one], seed=1) for one in shingled])
    assert np.array_equal(together, alone)
