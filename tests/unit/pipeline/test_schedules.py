"""What a schedule says of itself, against the orders that DeepSpeed runs: played on a clock, message by message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deepspeed.runtime.pipe import schedule as theirs

from trainer.config.pipeline_schedules import SCHEDULES
from trainer.config.schema import PipelineSchedule
from trainer.engine.deepspeed_engines import PIPELINE_ENGINES
from trainer.pipeline.module import MODULE_CLASSES

SHAPES = [(pp, times * pp + more) for pp in (2, 3, 4, 6) for times, more in ((2, 0), (2, 1), (3, 2), (8, 0))]
F, B = 1, 2
"""Time of a forward and of a backward pass of one stage."""
Key = tuple[str, int, int]
"""A message: what it is, the stage that sends it, and the micro-batch."""


def programs(kind: PipelineSchedule, pp: int, m: int) -> list[list[Any]]:
    maker = {PipelineSchedule.f1b1: theirs.TrainSchedule, PipelineSchedule.dualpipev: theirs.DualPipeVSchedule}[kind]
    return [[each for step in maker(m, pp, rank).steps() for each in step] for rank in range(pp)]


class Clock:
    """Plays the ranks' instructions; a receive waits for its send, and nothing but passes takes time."""

    def __init__(self, kind: PipelineSchedule, pp: int, m: int) -> None:
        self.pp, self.m = pp, m
        self.time, self.busy = [0] * pp, [0] * pp
        self.sent: dict[Key, int] = {}
        self.counts: dict[tuple[int, str, int], int] = {}
        self.stages = SCHEDULES[kind].stages(pp)
        self.owner = SCHEDULES[kind].owner
        players = [self.player(rank, program) for rank, program in enumerate(programs(kind, pp, m))]
        running = list(range(pp))
        while running:
            before = (sum(self.time), len(self.sent), len(running), sum(self.counts.values()))
            running = [rank for rank in running if next(players[rank], "over") != "over"]
            after = (sum(self.time), len(self.sent), len(running), sum(self.counts.values()))
            assert before != after, "the ranks wait for each other"

    def player(self, rank: int, program: list[Any]) -> Iterator[None]:
        """Do what this rank has to do, and stop wherever it waits."""
        queued: list[Any] = []
        for each in program:
            if each.name in ("SendActivation", "SendGrad", "RecvActivation", "RecvGrad"):
                # 1F1B exchanges at once, DualPipeV when it says so.
                queued.append(each)
                if hasattr(each, "phase"):
                    continue
            if each.name == "CommitP2P" or queued:
                received = [self.message(rank, one) for one in queued if one.name.startswith("Recv")]
                self.sent |= {self.message(rank, one): self.time[rank] for one in queued if one.name.startswith("Send")}
                queued = []
                while any(key not in self.sent for key in received):
                    yield
                self.time[rank] = max([self.time[rank], *(self.sent[key] for key in received)])
            took = {"ForwardPass": F, "BackwardPass": B}.get(each.name, 0)
            self.time[rank] += took
            self.busy[rank] += took

    def message(self, rank: int, each: Any) -> Key:
        """Name a message alike at both ends: the n-th of its kind between two stages is of micro-batch n."""
        phase = getattr(each, "phase", 0)
        stage = next(s for s in range(phase * self.pp, self.stages) if self.owner(s, self.pp) == rank)
        count = self.counts.setdefault((rank, each.name, phase), 0)
        self.counts[rank, each.name, phase] += 1
        what = each.name.removeprefix("Send").removeprefix("Recv")
        came_from = stage if each.name.startswith("Send") else stage - 1 if what == "Activation" else stage + 1
        return what, came_from, count


@pytest.mark.parametrize("kind", PipelineSchedule)
@pytest.mark.parametrize(("pp", "m"), SHAPES)
def test_the_bubble_is_that_of_the_order_that_deepspeed_runs(kind: PipelineSchedule, pp: int, m: int) -> None:
    clock = Clock(kind, pp, m)
    whole = max(clock.time)
    # Every rank computes all micro-batches through all its stages, so all are idle for equally long.
    assert clock.busy == [m * (F + B) * clock.stages // pp] * pp
    assert SCHEDULES[kind].bubble(pp, m) == pytest.approx(1 - clock.busy[0] / whole, abs=1e-12)


@pytest.mark.parametrize("kind", PipelineSchedule)
@pytest.mark.parametrize("pp", [2, 3, 4])
def test_fewer_micro_batches_than_the_fewest_are_refused_by_deepspeed_as_well(kind: PipelineSchedule, pp: int) -> None:
    fewest = SCHEDULES[kind].fewest_micro_batches(pp)
    programs(kind, pp, fewest)
    if fewest > 1:
        with pytest.raises(ValueError, match="micro-batches"):
            programs(kind, pp, fewest - 1)


def test_every_schedule_has_its_classes() -> None:
    assert set(SCHEDULES) == set(PIPELINE_ENGINES) == set(MODULE_CLASSES) == set(PipelineSchedule)


@pytest.mark.parametrize("kind", PipelineSchedule)
@pytest.mark.parametrize("pp", [2, 4])
def test_every_rank_owns_equally_many_stages(kind: PipelineSchedule, pp: int) -> None:
    schedule = SCHEDULES[kind]
    owners = [schedule.owner(stage, pp) for stage in range(schedule.stages(pp))]
    assert sorted(owners) == sorted([*range(pp)] * (schedule.stages(pp) // pp))
