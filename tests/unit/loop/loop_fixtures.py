from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch

from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import (
    BatchConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    ScheduleKind,
    TrainConfig,
    TridentConfig,
)
from trainer.data.batches import BatchSource, HeldOut
from trainer.engine.face import Evaluation, Fragment, ReadShard, Recorded, StepResult
from trainer.loop.events import Hook, RunEnd, SkippedBatch, StepReport
from trainer.loop.measures import Measures
from trainer.loop.session import Session
from trainer.loop.state import TrainState
from trainer.loop.stop import StopRequest
from trainer.loop.train import Batches, Loop
from trainer.micro_batch import MicroBatch, Place
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.groups import ParallelGroups, SingleGroup, single_process_groups

TOKENS = 256
"""Of a step."""


def after(step: int = 0) -> TrainState:
    """The state after a step of a run that was never interrupted."""
    ledger = "".join(f"{number:012x}," for number in range(1, step + 1))
    return TrainState(step, step * TOKENS, step * TOKENS, ledger, sample_length=128)


class FakeEngine:
    def __init__(
        self,
        losses: Mapping[int, float] | None = None,
        norms: Mapping[int, float] | None = None,
        any_data: bool = False,
    ) -> None:
        self.losses, self.norms, self.any_data = dict(losses or {}), norms or {}, any_data
        self.scale: float | None = None
        self.busy_s = 0.0
        self.seconds_per_step = 0.0
        self.seconds_per_evaluation = 0.0
        self.calls: list[tuple[int, float]] = []
        self.evaluated: list[float] = []
        # One buffer for all steps, as an engine may have.
        self.loss = torch.zeros(())

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        place = micro_batches[0].place
        assert place is not None
        step = place.step
        assert self.any_data or float(micro_batches[0].input_ids[0, 0]) == step
        self.calls.append((step, learning_rate))
        time.sleep(self.seconds_per_step)
        loss, norm = self.losses.get(step, 10.0 - step), self.norms.get(step, 1.0)
        self.loss.fill_(loss)
        applied = math.isfinite(loss) and loss <= loss_limit and math.isfinite(norm)
        return StepResult(self.loss, torch.tensor(norm), skipped=not applied)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
        assert micro_batches[0].place is None
        time.sleep(self.seconds_per_evaluation)
        self.busy_s += 1000.0
        self.evaluated.append(float(micro_batches[0].input_ids[0, 0]))
        return Evaluation(torch.tensor(self.evaluated[-1]), torch.tensor(4.0, dtype=torch.float64))

    def loss_scale(self) -> float | None:
        return self.scale

    def record(self, micro_batches: Sequence[MicroBatch]) -> list[Recorded]:
        raise AssertionError

    def take_own_seconds(self) -> float:
        return 0.002

    def held_bytes(self) -> Mapping[str, int]:
        raise AssertionError

    def take_busy_seconds(self) -> float:
        taken, self.busy_s = self.busy_s, 0.0
        return taken

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        return {}

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        return {}

    def fragments(self, only_trained: bool = False) -> Iterator[Fragment]:
        raise AssertionError("the loop does not save")

    def scalars(self) -> dict[str, float]:
        raise AssertionError("the loop does not save")

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        raise AssertionError("the loop does not load")


class FakeSource:
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    tokens = TOKENS
    names = ("data",)

    def micro_batches(self, position: int, step: int | None = None) -> list[MicroBatch]:
        time.sleep(self.seconds)
        ids = torch.full((1, 4), 1 + position // TOKENS)
        return [MicroBatch.of(ids, ids, place=None if step is None else Place(0, step, 0))]

    def sample_ids(self, position: int, step: int | None = None) -> list[int]:
        return [10 * (1 + position // TOKENS), 10 * (1 + position // TOKENS) + 1]

    def ledger(self, previous: str, position: int, step: int | None = None) -> str:
        return f"{previous}{1 + position // TOKENS:012x},"


class Recorder(Hook):
    def __init__(self, name: str = "", events: list[str] | None = None) -> None:
        self.name = name
        self.events: list[str] = [] if events is None else events
        self.reports: list[StepReport] = []
        self.ends: list[RunEnd] = []
        self.seconds_on_step = 0.0

    def on_start(self, first_step: int) -> None:
        self.events.append(f"{self.name}start {first_step}")

    def on_step(self, step: int) -> None:
        time.sleep(self.seconds_on_step)
        self.events.append(f"{self.name}step {step}")

    def on_report(self, report: StepReport) -> None:
        self.events.append(f"{self.name}report {report.step}")
        self.reports.append(report)

    def on_rewind(self, step: int) -> None:
        self.events.append(f"{self.name}rewind {step}")

    def on_end(self, end: RunEnd) -> None:
        self.events.append(f"{self.name}end {end.status}")
        self.ends.append(end)


def make(
    steps: int = 4,
    log_every: int = 1,
    eval_every: int = 0,
    eval_batches: int = 2,
    max_skipped_in_row: int = 0,
    prefetch_steps: int = 2,
) -> RunPlan:
    config = TridentConfig(
        train=TrainConfig(
            steps=steps,
            log_every=log_every,
            eval_every=eval_every,
            eval_batches=eval_batches,
            max_skipped_in_row=max_skipped_in_row,
        ),
        data=DataConfig(prefetch_steps=prefetch_steps),
        batch=BatchConfig(global_batch_size=2),
        optimizer=OptimizerConfig(lr=1.0),
        schedule=ScheduleConfig(kind=ScheduleKind.constant, warmup_steps=2),
    )
    return make_plan(config, vocab_size=16)


def no_checkpoint() -> TrainState:
    raise AssertionError("the loop must not go back")


def run(
    engine: FakeEngine,
    plan: RunPlan,
    hooks: Sequence[Hook],
    state: TrainState | None = None,
    stop: StopRequest | None = None,
    source: FakeSource | None = None,
    groups: ParallelGroups | None = None,
    validation: bool = True,
    measures: Measures | None = None,
    on_skip: Callable[[SkippedBatch], None] = lambda batch: None,
    go_back: Callable[[], TrainState] = no_checkpoint,
) -> RunEnd:
    class Skips(Hook):
        def on_skip(self, batch: SkippedBatch) -> None:
            on_skip(batch)

    held_out = [HeldOut("data", 1.0, cast(BatchSource, FakeSource()))] if validation else []
    batches = Batches(cast(BatchSource, source or FakeSource()), held_out)
    session = Session(
        plan=plan,
        groups=groups or single_process_groups(),
        hosts=["here"],
        measures=measures or Measures(),
    )
    state, stop = state if state is not None else after(), stop or StopRequest(SingleGroup())
    return Loop(session, engine, batches, state, [*hooks, Skips()], stop, go_back).run()
