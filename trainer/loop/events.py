"""Events that the loop tells its hooks, as plain values. Checkpoint and metrics implement `Hook`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepReport:
    """One logged optimizer step. Every rank gets the same numbers, except where noted.

    Times and rates are means over the steps since the report before (`window_steps` of them).
    """

    step: int
    """Number of the step, counted from 1."""
    loss: float
    """Next-token cross-entropy in nats, mean over the counted tokens of the global batch; NaN if none counts."""
    grad_norm: float
    """Global L2 norm of the gradients before clipping; not finite if the step was skipped."""
    learning_rate: float
    tokens_seen: int
    """Tokens read since step 1, over all ranks; those of skipped batches too."""
    window_steps: int
    step_ms: float
    """Wall time of a step on this rank, data included."""
    data_wait_ms: float
    """Part of a step that waited for data, this rank."""
    loss_scale: float | None
    """fp16: the dynamic loss scale; otherwise None."""
    skipped_steps: int
    """Steps so far whose update was not applied."""
    bubble_fraction: float | None
    """Measured share of the step in which this rank's stage computed nothing, mean over stages; None for pp=1."""
    step_percentiles_ms: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    """50th, 95th and 99th percentile of the last steps' time, this rank."""
    busy_ms: float = math.nan
    """Part of a step in which this rank ran forward and backward; NaN for pp=1."""
    own_ms: float = math.nan
    """A step's first forward pass without waits for other ranks, this rank; NaN if it is not known."""
    step_tokens: float | None = None
    """Tokens of a step, over all ranks; None: those of a full batch."""
    eval_loss: float | None = None
    """Mean validation loss, if this step was followed by an evaluation."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Measurements of hooks since the report before, this rank, by the names of the metrics row."""


@dataclass(frozen=True)
class SkippedBatch:
    """A global batch whose update was not applied."""

    step: int
    position: int
    """First token of the batch in the training stream."""
    samples: tuple[int | str, ...]
    """Indices in the training data, in the order of the batch; of a blend each behind the name of its source."""
    loss: float
    limit: float
    """Limit of the spike policy for the loss; infinity without a policy."""
    is_empty: bool = False
    """True if it was skipped because no token of it counts; its loss is NaN then."""

    @property
    def is_spike(self) -> bool:
        """True if it was skipped because its loss, though finite, was a spike."""
        return self.limit < self.loss < math.inf


@dataclass(frozen=True)
class RunEnd:
    """The end of a run. `status`: finished | stopped | failed."""

    status: str
    step: int
    wall_time_s: float
    error: str = ""
    """failed: kind and text of the failure."""


class Hook:
    """Called by the loop on every rank, in the order in which the composition root lists the hooks.

    A hook overrides the methods that it needs; the others do nothing.
    """

    def on_start(self, first_step: int) -> None:
        """Run before step `first_step`, once a run."""

    def on_step(self, step: int) -> None:
        """Run last of all after every optimizer step. Must not sync the host with the device."""

    def on_evaluate(self, step: int) -> None:
        """Run after the validation loss of a step is known, before the step is reported. May use collectives.

        Numbers that it notes in `Session.measures` are in the row of this step.
        """

    def on_report(self, report: StepReport) -> None:
        """Run after a step that logs (`train.log_every`), and after an evaluation. May use collectives."""

    def on_skip(self, batch: SkippedBatch) -> None:
        """Run after a step whose batch was skipped as bad, not after an overflow of fp16. The run may end with it."""

    def on_rewind(self, step: int) -> None:
        """Run after the run went back to the checkpoint of `step`: the next step is `step + 1` once more. Local.

        Not called where there was no checkpoint to go back to.
        """

    def on_end(self, end: RunEnd) -> None:
        """Run once, also after a failure (then without collectives)."""

    def waits_for_device(self, step: int) -> bool:
        """Return whether `on_step` of this step will wait for the device, so that the wait is the step's time."""
        return False
