"""Every moment counts once, whatever overlaps."""

from __future__ import annotations

import random

from trainer.profiling.intervals import Interval, divide, length, merged, overlap, without


def test_merging_joins_what_touches_and_drops_what_is_empty() -> None:
    assert merged([(5, 7), (1, 3), (3, 4), (6, 9), (20, 20), (12, 11)]) == [(1, 4), (5, 9)]
    assert merged([]) == []


def test_overlap_and_rest_make_the_whole() -> None:
    first, second = [(0, 10), (20, 30)], [(5, 22), (25, 26), (40, 50)]
    assert overlap(first, second) == [(5, 10), (20, 22), (25, 26)]
    assert without(first, second) == [(0, 5), (22, 25), (26, 30)]
    assert without(first, []) == first
    assert without([], second) == []
    assert without(first, [(0, 30)]) == []


def test_each_moment_goes_to_the_first_layer_that_has_it() -> None:
    layers = [("a", [(2, 4), (3, 6)]), ("b", [(0, 5)]), ("a", [(8, 9)]), ("c", [(100, 200)])]
    assert divide([(0, 10)], layers, "rest") == {"a": 5, "b": 2, "rest": 3}
    assert divide([(0, 2), (8, 10)], layers, "rest") == {"b": 2, "a": 1, "rest": 1}
    assert divide([(0, 4)], [("rest", [(0, 1)])], "rest") == {"rest": 4}


def test_parts_of_anything_add_up_to_the_whole_and_agree_with_a_count_of_moments() -> None:
    draw = random.Random(7)

    def some() -> list[Interval]:
        begins = [draw.randrange(60) for _ in range(draw.randrange(8))]
        return [(begin, begin + draw.randrange(15)) for begin in begins]

    for _ in range(200):
        window, layers = merged(some()), [(name, some()) for name in "abca"]
        parts = divide(window, layers, "rest")
        assert sum(parts.values()) == length(window)
        counted = dict.fromkeys([*parts], 0)
        for begin, end in window:
            for moment in range(begin, end):
                holders = (name for name, theirs in layers if any(b <= moment < e for b, e in theirs))
                counted[next(holders, "rest")] += 1
        assert counted == parts
