"""Engine face over DeepSpeed's plain engine: PP = 1, ZeRO 0 to 3."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from trainer.data.batches import MicroBatch
from trainer.engine.face import StepResult
from trainer.engine.wrapped import WrappedEngine
from trainer.model.gpt import GPT


class LanguageModel(nn.Module):
    """GPT with its loss: what DeepSpeed wraps."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss [] of `input_ids` [B, S] against `labels` [B, S]."""
        return self.gpt.loss(input_ids, labels)


class PlainEngine(WrappedEngine):
    """See `Engine`."""

    def train_step(
        self, micro_batches: Sequence[MicroBatch], step: int, learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        """Accumulate over the micro-batches; DeepSpeed steps at the last one."""
        self._begin_step(step, learning_rate, loss_limit)
        note, mean = self._engine.progress.enter, torch.zeros(())
        total = torch.zeros((), dtype=torch.float32, device=self._groups.device)
        for number, batch in enumerate(micro_batches, start=1):
            note("forward", number)
            with self._own_time.measured():
                loss = self._engine(batch.input_ids, batch.labels)
            total += loss.detach()
            note("backward", number)
            self._engine.backward(loss)
            if number == len(micro_batches):
                note("optimizer")
                mean = self._mean(total, number)
                self._engine.gate.see_loss(mean)
            self._engine.step()
        return self._result(mean)

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
        self._groups.gradients.all_reduce(total)
        return total / (count * self._groups.gradients.size)

    def take_busy_seconds(self) -> float:
        """Return 0: without stages there is no bubble to measure."""
        return 0.0
