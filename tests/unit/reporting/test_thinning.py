from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.reporting.thinning import evenly, thin


@given(st.integers(0, 3000), st.integers(4, 400), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_extremes_and_ends_stay(count: int, points: int, seed: int) -> None:
    values = np.round(np.random.default_rng(seed).normal(size=count), 4)
    steps = np.arange(count, dtype=np.int64) * 3 + 1
    drawn = thin(steps, values, points)
    assert len(drawn.values) <= points + 4
    assert drawn.steps == sorted(set(drawn.steps))
    if count:
        assert (min(drawn.values), max(drawn.values)) == (values.min(), values.max())
        assert (drawn.steps[0], drawn.steps[-1]) == (1, steps[-1])
        held = dict(zip(steps.tolist(), values.tolist(), strict=True))
        assert all(held[step] == value for step, value in zip(drawn.steps, drawn.values, strict=True))


def test_every_stretch_keeps_its_lowest_and_highest_value() -> None:
    values = np.zeros(10_000)
    values[4321], values[7777] = -5.0, 9.0
    drawn = thin(np.arange(10_000, dtype=np.int64), values, 100)
    assert dict(zip(drawn.steps, drawn.values, strict=True))[4321] == -5
    assert dict(zip(drawn.steps, drawn.values, strict=True))[7777] == 9


def test_means_are_those_of_the_stretches() -> None:
    values = np.arange(1001, dtype=np.float64)
    drawn = thin(np.arange(1001, dtype=np.int64), values, 100)
    assert drawn.stretch == 21
    assert drawn.means is not None
    assert drawn.means[0] == values[:21].mean()
    assert drawn.means[-1] == values[-(1001 % 21) :].mean()
    assert drawn.mean_steps is not None
    assert drawn.mean_steps[-1] == 1000


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    drawn = thin(np.arange(5, dtype=np.int64), np.array([1.0, np.nan, 3.0, np.inf, -np.inf]))
    assert (drawn.steps, drawn.values, drawn.not_finite) == ([0, 2], [1.0, 3.0], 3)


@pytest.mark.parametrize(
    ("count", "wanted", "places"), [(0, 3, []), (2, 3, [0, 1]), (5, 3, [0, 2, 4]), (1000, 2, [0, 999])]
)
def test_evenly(count: int, wanted: int, places: list[int]) -> None:
    assert evenly(count, wanted) == places
