from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from tests.unit.data.test_data_batches import SEQ_LENGTH, TOKENS, data, plan
from tests.unit.loop.loop_fixtures import FakeEngine, FakeSource, Recorder, after, make, run
from trainer.config.plan import RunPlan
from trainer.data.batches import BatchSource, training_batches
from trainer.engine.face import StepResult
from trainer.errors import DataError
from trainer.loop.step_data import StepData, StepStart
from trainer.micro_batch import MicroBatch
from trainer.progress import READER
from trainer.topology.groups import single_process_groups

CPU = torch.device("cpu")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == READER]


def read(source: BatchSource, of: RunPlan, ahead: int, jumps: dict[int, StepStart], steps: int) -> list[object]:
    """Return places, ids and hashes of the steps of a run that goes on elsewhere after some of them."""
    found, begun = StepData(source, of, single_process_groups(), ahead), StepStart(1, 0, "")
    seen: list[object] = []
    for count in range(steps):
        batch = found.take(begun)
        ids = [micro.input_ids.tolist() for micro in batch.micro_batches]
        ledger = batch.ledger_after()
        seen.append((begun.step, begun.position, ids, [micro.place for micro in batch.micro_batches], ledger))
        position = begun.position + of.tokens_of_step(begun.step)
        begun = jumps.get(count, StepStart(begun.step + 1, position, ledger))
    found.close()
    return seen


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_the_data_and_hashes_of_steps_are_the_same_ahead_of_time(tmp_path: Path, ahead: int) -> None:
    # A ramp of the batch, a rewind (an earlier step, a later position, an earlier hash), and another one at once.
    ramp = plan(2, 3, batch__rampup_steps=(2,), batch__rampup_sizes=(6,), train__steps=40)
    source = training_batches(data(tmp_path, np.arange(2000)), ramp, SEQ_LENGTH, 1, CPU)
    jumps = {3: StepStart(2, 5 * TOKENS, "ab" * 16), 4: StepStart(2, 6 * TOKENS, "cd" * 16)}
    assert read(source, ramp, ahead, jumps, 12) == read(source, ramp, 0, jumps, 12)
    assert threads() == []


@pytest.mark.parametrize("ahead", [0, 2])
def test_only_the_reporting_rank_hashes(ahead: int) -> None:
    groups, source = single_process_groups(), cast(BatchSource, FakeSource())
    for rank, ledger in ((0, "before,000000000001,"), (1, "before,")):
        found = StepData(source, make(steps=2), replace(groups, rank=rank), ahead)
        assert found.take(StepStart(1, 0, "before,")).ledger_after() == ledger
        found.close()


def test_no_batch_is_read_behind_the_last_step() -> None:
    class Counting(FakeSource):
        def __init__(self) -> None:
            super().__init__()
            self.read: list[int | None] = []

        def micro_batches(self, position: int, step: int | None = None) -> list[MicroBatch]:
            self.read.append(step)
            return super().micro_batches(position, step)

    source, recorder = Counting(), Recorder()
    run(FakeEngine(), make(steps=3, prefetch_steps=7), [recorder], source=source, validation=False)
    assert source.read == [1, 2, 3]
    assert threads() == []


DISK_S = 0.05


class SlowDisk(FakeSource):
    """Batches that take `DISK_S` each, and the steps whose batches are read."""

    def __init__(self) -> None:
        super().__init__(DISK_S)
        self.read: list[int | None] = []

    def micro_batches(self, position: int, step: int | None = None) -> list[MicroBatch]:
        found = super().micro_batches(position, step)
        self.read.append(step)
        return found


class LongSteps(FakeEngine):
    """Steps that last until the next batch is read, however busy the machine is; at most some seconds."""

    def __init__(self, disk: SlowDisk, last: int) -> None:
        super().__init__()
        self._disk, self._last = disk, last
        self.in_time: list[bool] = []

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        found = super().train_step(micro_batches, learning_rate, loss_limit)
        following, end = self.calls[-1][0] + 1, time.monotonic() + (0.2 if not threads() else 20)
        while following <= self._last and following not in self._disk.read and time.monotonic() < end:
            time.sleep(0.001)
        self.in_time.append(following > self._last or following in self._disk.read)
        return found


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_slow_disk_is_waited_for_only_without_a_thread(ahead: int) -> None:
    steps, disk, recorder = 6, SlowDisk(), Recorder()
    engine = LongSteps(disk, steps)
    run(engine, make(steps=steps, log_every=steps, prefetch_steps=ahead), [recorder], source=disk, validation=False)
    assert engine.in_time[:-1] == [ahead > 0] * (steps - 1)
    waits = [report.data_wait_ms for report in recorder.reports]
    # The first step must wait for its data in any case; a sleep is never shorter than asked. Later steps find theirs
    # read: their mean wait is below what the disk takes unless the machine stands still for as long in each of them.
    assert waits[0] >= 1000 * DISK_S
    assert (waits[-1] >= 1000 * DISK_S) == (ahead == 0)


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("what", ["micro_batches", "ledger"])
def test_a_fault_of_the_data_ends_the_step_that_needs_them(ahead: int, what: str) -> None:
    class Damaged(FakeSource):
        def micro_batches(self, position: int, step: int | None = None) -> list[MicroBatch]:
            self._check("micro_batches", step)
            return super().micro_batches(position, step)

        def ledger(self, previous: str, position: int, step: int | None = None) -> str:
            self._check("ledger", step)
            return super().ledger(previous, position, step)

        def _check(self, name: str, step: int | None) -> None:
            if name == what and step == 3:
                raise DataError("every token id must be less than 5, but sample 7 holds 9")

    recorder, state, engine = Recorder(), after(), FakeEngine()
    with pytest.raises(DataError, match="but sample 7 holds 9") as fault:
        run(engine, make(steps=6, prefetch_steps=ahead), [recorder], state=state, source=Damaged(), validation=False)
    assert [event for event in recorder.events if event.startswith("step")] == ["step 1", "step 2"]
    assert recorder.ends[0].error == f"DataError: {fault.value}"
    assert threads() == []
