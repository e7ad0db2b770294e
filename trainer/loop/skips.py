"""The handling of a step whose update was not applied: it is counted, reported, and at some point ends the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from trainer.config.schema import SpikePolicy, TrainConfig
from trainer.data.batches import BatchSource
from trainer.engine.face import StepResult
from trainer.errors import NumericsError
from trainer.log import warn
from trainer.loop.events import SkippedBatch
from trainer.loop.spikes import SpikeWatch
from trainer.loop.state import TrainState

FEW_SAMPLES = 16
"""Largest number of samples that an error names."""


@dataclass
class RewindCount:
    """Counts how often a run went back without getting further."""

    furthest: int = 0
    """Step of the latest spike."""
    number: int = 0
    """Number of spikes since the first one that was not beyond it."""

    def count(self, step: int) -> int:
        """Note a spike at `step`; return how many there were that got no further, this one included."""
        self.number = 1 if step > self.furthest else self.number + 1
        self.furthest = max(step, self.furthest)
        return self.number


@dataclass
class SkipPolicy:
    """Judges the result of each step. Its input is the same on all ranks, and so is its decision."""

    config: TrainConfig
    state: TrainState
    source: BatchSource
    record: Callable[[SkippedBatch], None]
    """Called on every rank with each batch that was skipped as bad; not with overflows of fp16."""
    rewinds: RewindCount = field(default_factory=RewindCount)

    def __post_init__(self) -> None:
        """Continue from the saved state."""
        self.spikes = SpikeWatch(self.config, self.state.recent_losses)

    def judge(self, result: StepResult, limit: float, position: int, is_fp16: bool) -> bool:
        """Note the step that `state` has just completed; return whether the run goes back to a checkpoint.

        Reads the loss, if there is a spike policy or the step was skipped: the host has waited for it already.

        Args:
            result: the step's result.
            limit: limit that the loss was compared with.
            position: first token of its batch.
            is_fp16: true if overflows are expected.

        Raises:
            NumericsError: too many skipped steps in a row, or a spike that is to end the run.
        """
        if not result.skipped:
            self.state.skipped_in_row = 0
            if self.spikes.is_on:
                self.spikes.see(float(result.loss))
            return False
        self.state.skipped_in_row += 1
        self.state.skipped_batches += 1
        samples = tuple(self.source.sample_ids(position, self.state.step))
        batch = SkippedBatch(self.state.step, position, samples, float(result.loss), limit, result.is_empty)
        if batch.is_spike and self.spikes.policy is SpikePolicy.stop:
            self.record(batch)
            raise NumericsError(_stopped_by_spike(batch), hints=_HINTS)
        if self.state.skipped_in_row > self.config.max_skipped_in_row:
            self.record(batch)
            raise NumericsError(self._too_many(batch), hints=_EMPTY_HINTS if batch.is_empty else _HINTS)
        if batch.is_spike or batch.is_empty or not is_fp16:
            self.record(batch)
            warn(f"step {batch.step} is skipped: {_what(batch)}; logs/skipped_batches.jsonl lists its samples")
        goes_back = batch.is_spike and self.spikes.policy is SpikePolicy.rewind
        if goes_back and self.rewinds.count(batch.step) > self.config.max_rewinds:
            raise NumericsError(self._too_often(batch), hints=_HINTS)
        return goes_back

    def _too_often(self, batch: SkippedBatch) -> str:
        return (
            f"going back to the last checkpoint must help, but the loss spiked again at step {batch.step}, no further "
            f"than before, with other data: {_what(batch)} (train.max_rewinds={self.config.max_rewinds}); "
            f"{_samples(batch)}"
        )

    def _too_many(self, batch: SkippedBatch) -> str:
        number, most = self.state.skipped_in_row, self.config.max_skipped_in_row
        found = (
            f"{_what(batch)} at step {batch.step}, the batch number {number} that was skipped in a row "
            f"(train.max_skipped_in_row={most}); {_samples(batch)}"
        )
        if batch.is_empty:
            return f"a batch must have a token that counts, but {found}"
        if batch.is_spike:
            return f"the loss must not spike, but {found}"
        return f"loss and gradients must be finite, but {found}"


_HINTS = (
    "lower optimizer.lr, raise schedule.warmup_steps, or set optimizer.grad_clip=1.0; with precision.dtype=fp16 try "
    "bf16 (or fp32): its range is that of fp32",
    "no skipped batch has changed the weights; they and their samples are in logs/skipped_batches.jsonl",
    "to go on past them raise train.max_skipped_in_row, or go back: checkpoint.resume=PATH in another run_dir",
)


_EMPTY_HINTS = (
    "labels of -100 and weights of 0 do not count: look at the samples, and at what made their labels",
    "to go on past them raise train.max_skipped_in_row",
)


def _what(batch: SkippedBatch) -> str:
    if batch.is_empty:
        return "none of its tokens counts"
    if batch.is_spike:
        return f"the loss was {batch.loss:.4f}, above {batch.limit:.4f}"
    if math.isfinite(batch.loss):
        return f"a gradient was not finite (loss {batch.loss:.4f})"
    return f"the loss was {batch.loss}"


def _stopped_by_spike(batch: SkippedBatch) -> str:
    return (
        f"the loss must not spike with train.spike_policy=stop, but {_what(batch)} at step {batch.step} "
        f"(train.spike_sigmas standard deviations above the mean of the last train.spike_window losses); "
        f"{_samples(batch)}"
    )


def _samples(batch: SkippedBatch) -> str:
    named = ", ".join(map(str, batch.samples[:FEW_SAMPLES]))
    more = len(batch.samples) - FEW_SAMPLES
    return f"it holds samples {named}" + (f" and {more} more" if more > 0 else "") + " of the training data"
