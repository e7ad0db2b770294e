"""Engine face over DeepSpeed's pipeline engines: PP > 1, ZeRO 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from trainer.data.batches import MicroBatch
from trainer.engine.deepspeed_engines import DrivenPipeline
from trainer.engine.face import StepResult
from trainer.engine.wrapped import WrappedEngine


def _pairs(micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what DeepSpeed pulls: the first stage reads [0], the last reads [1]."""
    for batch in micro_batches:
        yield batch.input_ids, batch.labels


class PipelinedEngine(WrappedEngine):
    """See `Engine`."""

    _engine: DrivenPipeline
    _shape: torch.Size | None = None
    """Of the micro-batch that went through the stages last."""

    def _tell_shape(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Let stages tell each other the shape of what travels, where it is not what it was. Local."""
        shape = micro_batches[0].input_ids.shape
        if self._shape not in (None, shape):
            self._engine.reset_activation_shape()
        self._shape = shape

    def train_step(
        self, micro_batches: Sequence[MicroBatch], step: int, learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        """Run the pipeline schedule once."""
        self._begin_step(step, learning_rate, loss_limit)
        self._engine.progress.enter("pipeline")
        self._tell_shape(micro_batches)
        loss = self._engine.train_batch(_pairs(micro_batches))
        return self._result(loss.detach().float().reshape(()))

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Run a forward-only schedule and put the module back into training mode."""
        busy_in_steps = self._engine.take_busy_seconds()
        self._tell_shape(micro_batches)
        loss = self._engine.eval_batch(_pairs(micro_batches), num_micro_batches=len(micro_batches))
        self._engine.module.train()
        # What an evaluation computes is no work of a step.
        self._engine.take_busy_seconds()
        self._engine.busy_seconds = busy_in_steps
        return torch.as_tensor(loss).float().reshape(())

    def take_busy_seconds(self) -> float:
        """Return the seconds of forward and backward since the last call."""
        return float(self._engine.take_busy_seconds())
