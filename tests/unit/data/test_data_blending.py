from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.blending import MOST_PARTS, Blending, whole_parts
from trainer.data.stream_plan import Phase

PARTS = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)


@st.composite
def phases_of(draw: st.DrawFn) -> list[Phase]:
    count = draw(st.integers(1, 6))
    parts = st.lists(st.integers(0, 9), min_size=count, max_size=count).filter(any)
    firsts = sorted(draw(st.sets(st.integers(1, 150), max_size=4)))
    return [Phase(first, tuple(draw(parts))) for first in (0, *firsts)]


def due_of(phases: list[Phase], places: int) -> list[list[Fraction]]:
    """Return what each source has due behind each number of places, added up one by one."""
    found = [[Fraction(0)] * len(phases[0].parts)]
    for place in range(places):
        parts = [phase.parts for phase in phases if phase.first <= place][-1]
        found.append([due + Fraction(part, sum(parts)) for due, part in zip(found[-1], parts, strict=True)])
    return found


@settings(deadline=None, max_examples=150)
@given(phases_of(), st.integers(0, 1000))
def test_no_source_is_ever_a_sample_ahead_or_behind(phases: list[Phase], first: int) -> None:
    """Over any prefix, however often the weights change."""
    moved = [Phase(phase.first + first, phase.parts) for phase in phases]
    blending, places = Blending(first, moved), 300
    sources, ordinals = blending.at(np.arange(places))
    counts = [0] * len(phases[0].parts)
    for place, due in enumerate(due_of(phases, places)):
        assert blending.counts(place).tolist() == counts
        assert all(abs(have - owed) < 1 for have, owed in zip(counts, due, strict=True)), place
        if place < places:
            source = int(sources[place])
            assert ordinals[place] == counts[source]
            counts[source] += 1


@settings(deadline=None)
@given(phases_of(), st.lists(st.integers(0, 10**12), min_size=1, max_size=9))
def test_any_place_is_known_at_once(phases: list[Phase], places: list[int]) -> None:
    """Far away, too: there the number of earlier samples is the share of all places, to a sample."""
    sources, ordinals = Blending(0, phases).at(np.array(places))
    for place, source, ordinal in zip(places, sources, ordinals, strict=True):
        one = Blending(0, phases).at(np.array([place]))
        assert (int(one[0][0]), int(one[1][0])) == (source, ordinal)
        due = Fraction(0)
        for phase, end in zip(phases, [*(other.first for other in phases[1:]), place], strict=True):
            length = max(0, min(place, end) - phase.first)
            due += Fraction(length * phase.parts[source], sum(phase.parts))
        assert abs(int(ordinal) - due) < 1


def test_a_source_without_weight_is_not_read() -> None:
    sources, _ = Blending(0, [Phase(0, (1, 0, 2))]).at(np.arange(3000))
    assert np.bincount(sources).tolist() == [1000, 0, 2000]


def test_a_change_of_weights_holds_from_its_place_on() -> None:
    sources, _ = Blending(0, [Phase(0, (1, 0)), Phase(5, (0, 1))]).at(np.arange(10))
    assert sources.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([0.7, 0.2, 0.1], (7, 2, 1)),
        ([1], (1,)),
        ([3.0], (1,)),
        ([0, 5], (0, 1)),
        ([14, 7, 21], (2, 1, 3)),
        ([0.25, 0.375], (2, 3)),
        ([1e-3, 1.0], (1, 1000)),
    ],
)
def test_weights_are_read_as_they_are_written(weights: list[float], parts: tuple[int, ...]) -> None:
    assert whole_parts(weights) == parts


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=5).filter(any))
def test_weights_of_any_number_of_digits_are_divided_to_a_millionth(weights: list[float]) -> None:
    parts = whole_parts(weights)
    total = sum(parts)
    assert 0 < total <= MOST_PARTS
    for part, weight in zip(parts, weights, strict=True):
        assert (part > 0) == (weight > 0)
        # Half a part is rounded; sources that get a part though less is due, and reducing, move the sum a little.
        assert abs(part / total - weight / sum(weights)) <= (2 + len(weights)) / MOST_PARTS or total < MOST_PARTS / 2
