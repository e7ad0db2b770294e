"""Engine face over DeepSpeed's plain engine: PP = 1, ZeRO 0 to 3."""

from __future__ import annotations

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

    def train_step(self, micro_batches: Sequence[MicroBatch], step: int, learning_rate: float) -> StepResult:
        """Accumulate over the micro-batches; DeepSpeed steps at the last one."""
        self._begin_step(step, learning_rate)
        total = torch.zeros((), dtype=torch.float32, device=self._groups.device)
        for batch in micro_batches:
            loss = self._engine(batch.input_ids, batch.labels)
            total += loss.detach()
            self._engine.backward(loss)
            self._engine.step()
        return self._result(self._mean(total, len(micro_batches)))

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

    def take_busy_seconds(self) -> float:
        """Return 0: without stages there is no bubble to measure."""
        return 0.0
