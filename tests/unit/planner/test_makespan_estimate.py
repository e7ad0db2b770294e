"""The closed form of a step's time against the simulated order, on random costs."""

from __future__ import annotations

import random

import pytest

from trainer.planner import orders
from trainer.planner.makespan_estimate import Messages, estimate_1f1b, estimate_dualpipev, estimate_interleaved
from trainer.planner.timeline import Costs, makespan

SIZES = (1, 2, 3, 4, 6, 8, 12, 16)


def drawn(draw: random.Random, stages: int, spread: float, message: float) -> Costs:
    forward = [draw.uniform(1 - spread, 1 + spread) for _ in range(stages)]
    backward = [one * draw.uniform(2 - spread / 2, 2 + spread / 2) for one in forward]
    return Costs(forward, backward, [message * draw.uniform(0.5, 1.0) for _ in range(stages - 1)])


@pytest.mark.parametrize("messages", Messages)
@pytest.mark.parametrize(
    ("spread", "message", "tolerance"),
    # Stages that are apart by so much, and messages as parts of a forward pass.
    [
        (0.0, 0.0, 1e-12),
        (0.0, 0.02, 0.003),
        (0.1, 0.0, 0.002),
        (0.1, 0.02, 0.003),
        (0.3, 0.0, 0.015),
        (0.3, 0.02, 0.015),
    ],
)
def test_1f1b_is_good_to_a_per_cent(messages: Messages, spread: float, message: float, tolerance: float) -> None:
    draw = random.Random(3)
    errors = []
    for _ in range(60):
        pp = draw.choice(SIZES)
        m = draw.choice([max(1, pp // 2), pp, 2 * pp, 4 * pp, 6 * pp + 1])
        costs = drawn(draw, pp, spread, message)
        found = makespan(getattr(orders, messages.value)(pp, m), costs)
        errors.append(estimate_1f1b(costs, m, messages) / found - 1)
    assert max(map(abs, errors)) < tolerance
    # A search compares layouts: what counts there is the mean.
    assert sum(map(abs, errors)) / len(errors) < max(tolerance / 3, 1e-12)


@pytest.mark.parametrize(
    ("spread", "message", "tolerance"), [(0.0, 0.0, 1e-12), (0.0, 0.02, 0.005), (0.1, 0.02, 0.025), (0.3, 0.02, 0.05)]
)
def test_dualpipev_is_good_to_some_per_cent(spread: float, message: float, tolerance: float) -> None:
    draw = random.Random(4)
    for _ in range(40):
        pp = draw.choice([2, 3, 4, 6, 8])
        m = draw.choice([2 * pp, 2 * pp + 1, 4 * pp, 8 * pp])
        costs = drawn(draw, 2 * pp, spread, message)
        assert estimate_dualpipev(costs, m) == pytest.approx(makespan(orders.dualpipev(pp, m), costs), rel=tolerance)


@pytest.mark.parametrize(("spread", "message", "tolerance"), [(0.0, 0.0, 1e-12), (0.0, 0.02, 0.005), (0.1, 0.02, 0.08)])
def test_interleaved_1f1b_is_good_where_stages_are_equal(spread: float, message: float, tolerance: float) -> None:
    draw = random.Random(5)
    for _ in range(40):
        pp, chunks = draw.choice([2, 4, 8]), draw.choice([2, 3])
        m = draw.choice([1, 2, 4, 8]) * pp
        costs = drawn(draw, pp * chunks, spread, message)
        found = makespan(orders.interleaved_1f1b(pp, m, chunks), costs)
        assert estimate_interleaved(costs, pp, m) == pytest.approx(found, rel=tolerance)


def test_weights_apart_are_a_part_of_backward() -> None:
    split, whole = Costs.equal(4, 1.0, 1.5, 0.1, weights=0.5), Costs.equal(4, 1.0, 2.0, 0.1)
    assert estimate_1f1b(split, 9) == estimate_1f1b(whole, 9)
    assert estimate_dualpipev(split, 9) == estimate_dualpipev(whole, 9)
