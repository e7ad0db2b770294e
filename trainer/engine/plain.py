"""Engine face over DeepSpeed's plain engine: PP = 1, ZeRO 0 to 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trainer.config.plan import RunPlan
from trainer.data.batches import MicroBatch
from trainer.engine import masters
from trainer.engine.deepspeed_engines import RepairedEngine
from trainer.engine.face import Fragment, ReadShard, StepResult
from trainer.engine.state import (
    gathered_parameters,
    local_shard_specs,
    set_learning_rate,
    step_result,
)
from trainer.model.gpt import GPT
from trainer.tensor_parallel.random import StepClock
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.groups import ParallelGroups


class LanguageModel(nn.Module):
    """GPT with its loss: what DeepSpeed wraps."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss [] of `input_ids` [B, S] against `labels` [B, S]."""
        return self.gpt.loss(input_ids, labels)


class PlainEngine:
    """See `Engine`."""

    def __init__(self, engine: RepairedEngine, plan: RunPlan, groups: ParallelGroups, clock: StepClock) -> None:
        self._engine: Any = engine
        self._plan = plan
        self._groups = groups
        self._clock = clock

    def train_step(self, micro_batches: Sequence[MicroBatch], step: int, learning_rate: float) -> StepResult:
        """Accumulate over the micro-batches; DeepSpeed steps at the last one."""
        plan, engine = self._plan, self._engine
        set_learning_rate(engine, learning_rate)
        self._clock.start_step(
            step, self._groups.data.rank, plan.data_parallel_size, plan.config.batch.micro_batch_size
        )
        total = torch.zeros((), dtype=torch.float32, device=self._groups.device)
        for batch in micro_batches:
            loss = engine(batch.input_ids, batch.labels)
            total += loss.detach()
            engine.backward(loss)
            engine.step()
        return step_result(engine, self._mean(total, len(micro_batches)), self._groups)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Average the loss over micro-batches and data-parallel ranks."""
        total = torch.zeros((), dtype=torch.float32, device=self._groups.device)
        self._engine.eval()
        with torch.no_grad():
            for batch in micro_batches:
                total += self._engine(batch.input_ids, batch.labels)
        self._engine.train()
        return self._mean(total, len(micro_batches))

    def _mean(self, total: torch.Tensor, count: int) -> torch.Tensor:
        self._groups.data.all_reduce(total)
        return total / (count * self._groups.data.size)

    def loss_scale(self) -> float | None:
        """Return the dynamic loss scale in fp16."""
        return float(self._engine.optimizer.cur_scale) if self._engine.fp16_enabled() else None

    def skipped_steps(self) -> int:
        """Return the number of overflows so far."""
        return int(self._engine.skipped_steps)

    def take_busy_seconds(self) -> float:
        """Return 0: without stages there is no bubble to measure."""
        return 0.0

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
