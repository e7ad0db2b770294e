"""Engine face over DeepSpeed's plain engine: PP = 1, ZeRO 0 to 3."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from trainer.engine.face import StepResult
from trainer.engine.wrapped import WrappedEngine
from trainer.micro_batch import MicroBatch


class PlainEngine(WrappedEngine):
    """See `Engine`."""

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        """Accumulate over the micro-batches; DeepSpeed steps at the last one."""
        note = self._engine.progress.enter
        # Before replicas wait for each other: who is still at its data is behind.
        note("forward")
        parts = self._begin_step(micro_batches, learning_rate, loss_limit)
        total = torch.zeros((), dtype=torch.float32, device=self._groups.device)
        for number, batch in enumerate(parts, start=1):
            note("forward", number)
            with self._own_time.measured():
                loss = self._engine(batch)
            total += loss.detach()
            note("backward", number)
            self._engine.backward(loss)
            if number == len(parts):
                note("optimizer")
                self._engine.gate.see_loss(self._mean(total, number))
            self._engine.step()
        return self._result()

    def _evaluate(self, parts: Sequence[MicroBatch]) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=self._groups.device)
        self._engine.eval()
        with torch.no_grad():
            for batch in parts:
                total += self._engine(batch)
        self._engine.train()
        return self._mean(total, len(parts))

    def _mean(self, total: torch.Tensor, count: int) -> torch.Tensor:
        self._groups.gradients.all_reduce(total)
        return total / (count * self._groups.gradients.size)

    def take_busy_seconds(self) -> float:
        """Return 0: without stages there is no bubble to measure."""
        return 0.0
