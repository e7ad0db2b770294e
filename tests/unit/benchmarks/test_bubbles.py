"""Figures of a pipeline's waiting, from passes that were made by the simulator itself."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.bubbles import bubble_of
from trainer.config.schema import PipelineSchedule
from trainer.planner.orders import Work, trained_order
from trainer.planner.timeline import Costs, Timeline, simulate


def noted(timeline: Timeline, later: float) -> list[dict[str, Any]]:
    """Return every rank's passes as the benchmark notes them, on a clock that began earlier."""
    return [
        {
            "passes": [
                [Work(span.what.work).name, span.what.stage, later + span.begin, later + span.end] for span in spans
            ],
            "idle": 0.5,
        }
        for spans in timeline.ranks
    ]


@pytest.mark.parametrize(
    ("kind", "pp", "m"),
    [(PipelineSchedule.f1b1, 2, 1), (PipelineSchedule.f1b1, 4, 6), (PipelineSchedule.dualpipev, 2, 5)],
)
def test_what_ran_as_simulated_is_found_to_have_done_so(kind: PipelineSchedule, pp: int, m: int) -> None:
    order = trained_order(kind, pp, m)
    forward = [0.010 + 0.001 * stage for stage in range(order.stages)]
    costs = Costs(forward, [2 * one for one in forward], [0.0005] * (order.stages - 1))
    played = simulate(order, costs)
    found = bubble_of(kind, pp, m, [noted(played, 100.0), noted(played, 200.0), noted(played, 300.0)])
    assert found.forward_ms == pytest.approx([1e3 * one for one in forward])
    assert found.backward_ms == pytest.approx([2e3 * one for one in forward])
    assert found.message_ms == pytest.approx(0.5)
    assert found.step_ms == found.simulated_step_ms == pytest.approx(1e3 * played.makespan, abs=0.01)
    assert found.idle == found.simulated_idle == pytest.approx(played.idle_fraction, abs=1e-4)
    assert found.bubble == found.simulated_bubble == pytest.approx(played.bubble, abs=1e-4)
    assert found.least_idle == found.most_idle == found.idle
    assert found.logged == 0.5


def test_a_step_that_waits_for_longer_shows() -> None:
    kind = PipelineSchedule.f1b1
    order = trained_order(kind, 2, 2)
    played = noted(simulate(order, Costs.equal(2, 0.01, 0.02)), 0.0)
    late = [
        {**rank, "passes": [[*note[:2], note[2] + 0.01, note[3] + 0.01] for note in rank["passes"]]} for rank in played
    ]
    found = bubble_of(kind, 2, 2, [[played[0], late[1]]])
    # The last rank began 10 ms later than it could, so a message seems to take that long. Of them four are on the way
    # of the second micro-batch: there, the first gradient before it, its own result, and its gradient.
    assert found.simulated_step_ms == pytest.approx(90.0 + 40.0)
    assert found.message_ms == pytest.approx(10.0)
    assert found.step_ms == pytest.approx(90.0)
