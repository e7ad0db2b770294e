"""The measured timeline of real engines: the planner's order, on one clock, with times as the rows of metrics say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.dist import run_distributed, train_command
from trainer.config.schema import PipelineSchedule
from trainer.planner.orders import Exchange, Order, Pass, Work, trained_order
from trainer.planner.timeline import Costs, simulate
from trainer.profiling.measured_step import Message, Span, StepTimeline, read_timeline

pytestmark = [pytest.mark.dist, pytest.mark.timeout(180)]

SMALL = (
    *("data=synthetic", "model.vocab_size=64", "model.hidden_size=32", "model.num_layers=4"),
    *("model.num_attention_heads=4", "model.seq_length=64", "batch.micro_batch_size=2", "train.log_every=1"),
    *("schedule.warmup_steps=1", "logging=local", "logging.console=plain", "checkpoint.save_final=false"),
)


def trained(folder: Path, ranks: int, *words: str) -> tuple[StepTimeline, list[dict[str, Any]]]:
    """Train, and return the timeline and the rows of metrics."""
    assert run_distributed(train_command, ranks, [*SMALL, *words, f"run_dir={folder}"]) == [0] * ranks
    found = read_timeline(folder / "timeline.json")
    assert found is not None
    return found, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def of_rank(found: StepTimeline, rank: int) -> list[Span]:
    return [span for span in found.spans if span.rank == rank]


def noted(spans: Sequence[Span], planned: Order) -> list[Pass | Exchange]:
    """Return what was measured in the planner's words; messages that went together are in the order of its list."""
    told: list[Pass | Exchange] = []
    for span in spans:
        if span.kind in ("forward", "backward"):
            assert span.stage is not None
            assert span.micro_batch is not None
            told.append(Pass(Work[span.kind], span.stage, span.micro_batch))
        elif span.kind in ("send", "receive", "exchange"):
            ways: dict[str, list[Pass]] = {"send": [], "receive": []}
            for message in span.messages:
                ways[message.direction].append(Pass(Work[message.work], message.stage, message.micro_batch))
            told.append(Exchange(tuple(ways["send"]), tuple(ways["receive"])))
    return told


def check(found: StepTimeline) -> None:
    """What holds of every timeline."""
    assert min(span.begin_ms for span in found.spans) == 0
    assert found.clock_error_ms == 0, "ranks of one machine have one clock"
    for place in found.ranks:
        mine = of_rank(found, place.rank)
        assert all(one.begin_ms <= one.end_ms <= other.begin_ms for one, other in pairwise(mine))
        assert mine[0].kind == "data"
        assert mine[-1].kind == "optimizer"


@pytest.mark.parametrize(
    ("words", "ranks", "schedule", "pp", "m"),
    [
        (["layout.pipeline_parallel_size=2", "layout.tensor_parallel_size=2"], 4, "1f1b", 2, 4),
        (["layout.pipeline_parallel_size=2", "layout.pipeline_schedule=dualpipev"], 2, "dualpipev", 2, 5),
    ],
    ids=["1f1b, tp=2", "dualpipev"],
)
def test_it_is_the_order_that_the_planner_plays(
    tmp_path: Path, words: list[str], ranks: int, schedule: str, pp: int, m: int
) -> None:
    found, rows = trained(tmp_path, ranks, *words, "train.steps=6", f"batch.global_batch_size={2 * m}")
    check(found)
    assert (found.step, found.schedule, found.micro_batches, found.device) == (5, schedule, m, "cpu")
    order = trained_order(PipelineSchedule(schedule), pp, m)
    assert found.stages == order.stages
    assert tuple(place.rank for place in found.ranks for _ in place.stages) == tuple(
        found.ranks[owner].rank for owner in sorted(order.owners)
    )
    for place, planned in zip(found.ranks, order.ranks, strict=True):
        assert noted(of_rank(found, place.rank), order) == list(planned)
    # A pass begins after what it needs is over, on the rank that makes it.
    ends = {(span.kind, span.stage, span.micro_batch): span.end_ms for span in found.spans}
    for span in found.spans:
        if span.kind == "forward" and span.stage:
            assert ends["forward", span.stage - 1, span.micro_batch] <= span.begin_ms
        if span.kind == "backward" and span.stage is not None and span.stage + 1 < found.stages:
            assert ends["backward", span.stage + 1, span.micro_batch] <= span.begin_ms
    # Both ends of a transfer begin it together, when the later one is there.
    begins: dict[Message, float] = {}
    for span in found.spans:
        if span.kind in ("send", "receive"):
            [message] = span.messages
            begins[message] = span.begin_ms
    for message, begin in begins.items():
        assert begin == begins[message.other_end]
    # Passes as the rows count them; there the time between two notes is not in it.
    row = rows[4]
    for stage, place in enumerate(found.ranks):
        passes = [span for span in of_rank(found, place.rank) if span.kind in ("forward", "backward")]
        busy = sum(span.end_ms - span.begin_ms for span in passes)
        assert row[f"time/stage{stage}/busy_ms"] * 0.5 < busy < row[f"time/stage{stage}/busy_ms"] * 1.5 + 10 * m
    assert found.duration_ms < 1.5 * row["time/step_ms"] + 50
    # Messages and uneven passes come to what the schedule alone would cost.
    played = simulate(order, Costs(found.pass_ms("forward"), found.pass_ms("backward")))
    assert found.bubble_fraction is not None
    assert 0 < found.bubble_fraction < 1
    assert 0 < played.idle_fraction < 1


def test_one_stage_has_its_passes_and_its_optimizer(tmp_path: Path) -> None:
    words = ["layout.data_parallel_size=2", "batch.global_batch_size=12", "train.steps=3"]
    found, _ = trained(tmp_path, 2, *words)
    check(found)
    # A run of three steps has no fifth one.
    assert (found.step, found.schedule, found.micro_batches, found.stages) == (3, "none", 3, 1)
    assert found.bubble_fraction is None
    kinds = [(span.kind, span.micro_batch) for span in found.spans]
    passes = [(kind, number) for number in range(3) for kind in ("forward", "backward")]
    assert kinds == [("data", None), ("start", None), *passes, ("optimizer", None)]
