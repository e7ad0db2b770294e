"""Engine face over DeepSpeed's pipeline engines: PP > 1, ZeRO 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from trainer.engine.deepspeed_engines import DrivenPipeline
from trainer.engine.face import StepResult
from trainer.engine.wrapped import WrappedEngine
from trainer.micro_batch import MicroBatch


def _loaded(micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[torch.Tensor, None]]:
    """Yield pairs as DeepSpeed pulls them: the first stage reads [0]; the last reads [1], which its head ignores."""
    for batch in micro_batches:
        yield batch.input_ids, None


class PipelinedEngine(WrappedEngine):
    """See `Engine`."""

    _engine: DrivenPipeline
    _shape: torch.Size | None = None
    """Shape of the micro-batch that went through the stages last."""

    def _tell_shape(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Let stages tell each other the shape of the tensor between them, if it has changed. Local."""
        shape = micro_batches[0].input_ids.shape
        if self._shape not in (None, shape):
            self._engine.reset_activation_shape()
        self._shape = shape

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        """Run the pipeline schedule once."""
        # Before replicas wait for each other: who is still at its data is behind.
        self._engine.progress.enter("pipeline")
        parts = self._begin_step(micro_batches, learning_rate, loss_limit)
        self._tell_shape(parts)
        self._engine.expect(parts)
        self._engine.train_batch(_loaded(parts))
        return self._result()

    def _evaluate(self, parts: Sequence[MicroBatch]) -> torch.Tensor:
        """Run a forward-only schedule and put the module back into training mode."""
        busy_in_steps = self._engine.take_busy_seconds()
        self._tell_shape(parts)
        self._engine.expect(parts)
        loss = self._engine.eval_batch(_loaded(parts), num_micro_batches=len(parts))
        self._engine.module.train()
        # The computation of an evaluation is no work of a step.
        self._engine.take_busy_seconds()
        self._engine.busy_seconds = busy_in_steps
        return torch.as_tensor(loss).float().reshape(())

    def take_busy_seconds(self) -> float:
        """Return the seconds of forward and backward since the last call."""
        return float(self._engine.take_busy_seconds())
