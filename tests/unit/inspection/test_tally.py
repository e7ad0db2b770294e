from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.inspection.exact_duplicates import ExactDuplicates
from trainer.inspection.seen import SeenDocument
from trainer.inspection.tally import END_IDS, MOST_IDS, SHOWN_IDS, Reservoir, Tally, shares


@pytest.mark.parametrize("held", [3, 10, 1000])
def test_copies_are_counted_in_memory_and_in_buckets(held: int) -> None:
    exact = ExactDuplicates(held)
    hashes = [int(one) << 56 | int(one) for one in np.random.default_rng(0).integers(0, 60, 300)]
    for hash_ in hashes:
        exact.add(hash_)
    counts = [hashes.count(one) for one in set(hashes)]
    several = sum(count > 1 for count in counts)
    assert exact.copies() == (300, 300 - len(counts), sum(math.comb(count, 2) for count in counts), several)


def test_no_documents_have_no_copies() -> None:
    assert ExactDuplicates().copies() == (0, 0, 0, 0)


def test_a_reservoir_keeps_each_with_the_same_chance() -> None:
    kept = np.zeros(20)
    for seed in range(2000):
        reservoir: Reservoir[int] = Reservoir(5, seed)
        for number in range(20):
            reservoir.offer(lambda number=number: number)  # type: ignore[misc]
        things = reservoir.things()
        assert things == sorted(things)
        kept[things] += 1
    # 500 times each; the standard deviation is 19, and five of them lie outside once in a million.
    assert np.abs(kept - 500).max() < 5 * 19.4


def test_a_reservoir_of_nothing_keeps_nothing() -> None:
    reservoir: Reservoir[int] = Reservoir(0, 0)
    reservoir.offer(lambda: 1)
    assert reservoir.things() == []


def seen(ids: list[int], hash_: int = 0) -> SeenDocument:
    return SeenDocument("train", hash_, True, tokens=len(ids), ids=np.array(ids, dtype=np.int32))


def test_ids_are_counted_and_those_outside_are_told() -> None:
    tally = Tally(True, 10, 0, 0)
    for ids in ([1, 1, 2], [9, 10, -1, 70_000]):
        tally.add(seen(ids))
    assert tally.id_counts().tolist() == [0, 2, 1, 0, 0, 0, 0, 0, 0, 1]
    assert (tally.outside, tally.largest_id) == (3, 70_000)
    assert tally.most_frequent(2) == [1, 2]


def test_without_a_vocabulary_ids_are_counted_up_to_a_limit() -> None:
    tally = Tally(True, None, 0, 0)
    tally.add(seen([3, MOST_IDS - 1, MOST_IDS, 4_000_000_00]))
    assert np.flatnonzero(tally.id_counts()).tolist() == [3, MOST_IDS - 1]
    assert tally.outside == 2


def test_lengths_are_of_whole_documents_only() -> None:
    tally = Tally(True, 10, 0, 0)
    for length in (1, 2, 2, 5):
        tally.add(seen([1] * length))
    tally.add(SeenDocument("train", 7, False, tokens=100, ids=np.ones(100, dtype=np.int64)))
    assert (tally.documents, tally.pieces) == (4, 1)
    assert [tally.quantile(share) for share in (0.25, 0.5, 0.75, 0.99)] == [1, 2, 2, 5]
    assert tally.exact.copies() == (4, 3, 6, 1)


def test_a_document_that_is_shown_holds_its_beginning_and_its_end() -> None:
    tally = Tally(True, None, 2, 0)
    ids = list(range(5000))
    tally.add(seen(ids))
    tally.add(seen([1, 2]))
    long, short = tally.shown()
    assert long.ids is not None
    assert long.end_ids is not None
    assert long.ids.tolist() == ids[:SHOWN_IDS]
    assert long.end_ids.tolist() == ids[-END_IDS:]
    assert short.end_ids is None


def test_small_shares_are_put_together() -> None:
    assert shares([("a", 1), ("b", 6), ("c", 2), ("d", 1)], 2) == [("b", 0.6), ("c", 0.2), ("2 more", 0.2)]
    assert shares([("a", 1)], 2) == [("a", 1.0)]
