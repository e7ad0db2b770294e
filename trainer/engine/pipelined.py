"""Engine face over DeepSpeed's pipeline engines: PP > 1, ZeRO 0 and 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trainer.config.plan import RunPlan
from trainer.data.batches import MicroBatch
from trainer.engine import masters
from trainer.engine.deepspeed_engines import RepairedDualPipeVEngine, RepairedPipelineEngine
from trainer.engine.face import Fragment, ReadShard, StepResult
from trainer.engine.state import (
    gathered_parameters,
    local_shard_specs,
    set_learning_rate,
    step_result,
)
from trainer.tensor_parallel.random import StepClock
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.groups import ParallelGroups


def _pairs(micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what DeepSpeed pulls: the first stage reads [0], the last reads [1]."""
    for batch in micro_batches:
        yield batch.input_ids, batch.labels


class PipelinedEngine:
    """See `Engine`."""

    def __init__(
        self,
        engine: RepairedPipelineEngine | RepairedDualPipeVEngine,
        plan: RunPlan,
        groups: ParallelGroups,
        clock: StepClock,
    ) -> None:
        self._engine: Any = engine
        self._plan = plan
        self._groups = groups
        self._clock = clock

    def train_step(self, micro_batches: Sequence[MicroBatch], step: int, learning_rate: float) -> StepResult:
        """Run the pipeline schedule once."""
        plan = self._plan
        set_learning_rate(self._engine, learning_rate)
        self._clock.start_step(
            step, self._groups.data.rank, plan.data_parallel_size, plan.config.batch.micro_batch_size
        )
        loss = self._engine.train_batch(_pairs(micro_batches))
        return step_result(self._engine, loss.detach().float().reshape(()), self._groups)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Run a forward-only schedule and put the module back into training mode."""
        loss = self._engine.eval_batch(_pairs(micro_batches), num_micro_batches=len(micro_batches))
        self._engine.module.train()
        busy_in_evaluation = self._engine.take_busy_seconds()
        del busy_in_evaluation
        return torch.as_tensor(loss).float().reshape(())

    def loss_scale(self) -> float | None:
        """Return the dynamic loss scale in fp16."""
        return float(self._engine.optimizer.cur_scale) if self._engine.fp16_enabled() else None

    def skipped_steps(self) -> int:
        """Return the number of overflows so far."""
        return int(self._engine.skipped_steps)

    def take_busy_seconds(self) -> float:
        """Return the seconds of forward and backward since the last call."""
        return float(self._engine.take_busy_seconds())

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        """Return this rank's shards by global name."""
        return gathered_parameters(self._engine.module)

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        """Return how each local parameter is cut."""
        return local_shard_specs(self._engine.module)

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank has to write."""
        return masters.fragments(self._engine, self._groups)

    def scalars(self) -> dict[str, float]:
        """Return counters and loss scale."""
        return masters.scalars(self._engine)

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        """Take a checkpoint's state."""
        masters.restore(self._engine, read, scalars)
