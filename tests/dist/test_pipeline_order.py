"""The planner's orders against the engine that they are orders of: the passes that it runs, and when it waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers.batches import micro_batches_of
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZER, VOCABULARY, Case, config_of
from trainer.config.schema import PipelineSchedule
from trainer.planner.orders import Work, trained_order
from trainer.planner.timeline import Costs, Timeline, simulate
from trainer.profiling.measured_step import RankPlace, StepTimeline
from trainer.profiling.spans import RankNotes, spans_of

FORWARD_S, BACKWARD_S = 0.06, 0.12
TRIES = 5
pytestmark = pytest.mark.dist


def passes_of_a_step(
    rank: int, world_size: int, kind: str, m: int, enough_s: float
) -> tuple[list[tuple[str, int, float, float]], RankNotes, tuple[list[float], list[float]]]:
    """Return what a rank did in a step whose passes last as long as they are told to.

    First work, stage, begin and end of every pass, then the notes of which a measured timeline is made, then by how
    much the clocks of the ranks seem to be apart, and the error of that.
    """
    from benchmarks.contenders.paced import Passes
    from trainer.config.plan import make_plan
    from trainer.engine.build import build_engine
    from trainer.engine.world import start_world
    from trainer.pipeline.partition import stages
    from trainer.profiling.clocks import clock_name, clock_offsets
    from trainer.profiling.step_clock import StepClock
    from trainer.progress import Progress

    plan = make_plan(config_of(Case(pp=world_size, schedule=kind, num_micro_batches=m)), VOCABULARY, world_size)
    groups = start_world(plan.mesh, plan.config.runtime, torch.device("cpu"))
    tokens = torch.randint(0, VOCABULARY, (m, 9), generator=torch.Generator().manual_seed(3))
    batches = micro_batches_of(tokens, plan, 0)
    progress = Progress()
    engine: Any = build_engine(plan, groups, progress)
    found = stages(plan)
    own = [stage.index for stage in found if stage.rank_index == rank]
    passes = Passes(engine, own)
    passes.let_last([FORWARD_S] * len(found), [BACKWARD_S] * len(found))
    # In the first step stages tell each other the shapes.
    engine.train_step(batches, OPTIMIZER.lr)
    passes.take()
    clock = progress.listener = StepClock(groups.device)
    # A busy machine wakes a sleeping rank late. The first step that it leaves alone is taken, or the last one.
    for step in range(2, 2 + TRIES):
        dist.barrier()
        progress.begin_step(step)
        engine.train_step(batches, OPTIMIZER.lr)
        progress.enter("hooks")
        noted = passes.take()
        ends = groups.control.all_gather(torch.tensor([[noted[0][2], noted[-1][3]]], dtype=torch.float64))
        if float(ends[:, 1].max() - ends[:, 0].min()) < enough_s:
            break
    heard = RankNotes(rank, "here", tuple(own), clock.take(), clock_name())
    return noted, heard, clock_offsets(groups.control, range(world_size))


@pytest.mark.parametrize(("kind", "pp", "m"), [("1f1b", 2, 3), ("1f1b", 4, 5), ("dualpipev", 2, 5)])
def test_the_engine_runs_the_planners_order_and_waits_as_it_says(kind: str, pp: int, m: int) -> None:
    order = trained_order(PipelineSchedule(kind), pp, m)
    played = simulate(order, Costs.equal(order.stages, FORWARD_S, BACKWARD_S))
    found = run_distributed(passes_of_a_step, pp, kind, m, 1.2 * played.makespan, timeout_s=120)
    ranks, heard, apart = zip(*found, strict=True)
    counts: dict[tuple[str, int], int] = {}
    for noted, passes in zip(ranks, order.passes, strict=True):
        numbered = []
        for work, stage, _, _ in noted:
            number = counts[work, stage] = counts.get((work, stage), -1) + 1
            numbered.append((Work[work], stage, number))
        assert numbered == [tuple(each) for each in passes]
    took = max(noted[-1][3] for noted in ranks) - min(noted[0][2] for noted in ranks)
    # Sleeping ranks cannot be faster than the simulation. They are slower by what a busy machine adds to each pass.
    assert played.makespan * 0.999 < took < played.makespan * 1.5
    check_measured(ranks, heard, played)
    offsets, errors = apart[0]
    # It is one clock, read by several processes.
    assert all(abs(offset) <= error + 1e-9 for offset, error in zip(offsets, errors, strict=True))
    assert 0 < max(errors) < 0.1


def check_measured(
    ranks: Sequence[list[tuple[str, int, float, float]]], heard: Sequence[RankNotes], played: Timeline
) -> None:
    """The timeline that a run writes has the same passes at the same times, and waits where they are simulated."""
    assert len({notes.clock for notes in heard}) == 1
    spans = spans_of(heard, [0.0] * len(heard))
    begun = min(notes.notes[0].begin_s for notes in heard)
    for rank, noted in enumerate(ranks):
        passes = [span for span in spans if span.rank == rank and span.kind in ("forward", "backward")]
        assert [(span.kind, span.stage) for span in passes] == [(work, stage) for work, stage, _, _ in noted]
        late = [1e3 * (begin - begun) - span.begin_ms for span, (_, _, begin, _) in zip(passes, noted, strict=True)]
        late += [span.end_ms - 1e3 * (end - begun) for span, (_, _, _, end) in zip(passes, noted, strict=True)]
        # Between a note and its pass is Python alone, which a busy machine interrupts now and then.
        assert min(late) >= 0
        assert median(late) < 10
    measured = StepTimeline(
        step=2,
        time=datetime.now(UTC),
        schedule="1f1b",
        micro_batches=played.order.micro_batches,
        device="cpu",
        clock_error_ms=0.0,
        ranks=tuple(RankPlace(notes.rank, notes.host, notes.stages) for notes in heard),
        spans=spans,
    )
    assert measured.bubble_fraction is not None
    # Each pass of some 100 ms may be late by what a busy machine adds, see above.
    assert abs(measured.bubble_fraction - played.idle_fraction) < 0.15
    waited = sum(span.end_ms - span.begin_ms for span in spans if span.kind == "wait") / 1e3
    # Ranks idle at the end too, where they wait for no message: a third of it with 1F1B of four ranks.
    assert 0.3 * sum(played.idle) < waited


def seconds_of_a_send(rank: int, world_size: int) -> float:
    """Return the seconds until rank 0 has sent a tensor that rank 1 takes half a second later."""

    tensor = torch.zeros(16)
    dist.barrier()
    begun = time.perf_counter()
    if rank == 0:
        dist.send(tensor, 1)
    else:
        time.sleep(0.5)
        dist.recv(tensor, 0)
    return time.perf_counter() - begun


def test_a_send_ends_when_the_other_end_takes_it() -> None:
    sender, _ = run_distributed(seconds_of_a_send, 2, timeout_s=60)
    assert sender > 0.4
