"""The part of the config schema that says how long a run is, and what may stop it. Part of `schema.py`.

A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class SpikePolicy(Enum):
    """Answer to a spike: a loss far above those before it. With any but `none` that batch's update is not applied."""

    none = "none"
    skip = "skip"
    rewind = "rewind"
    stop = "stop"


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, its intervals, and its answers to bad batches."""

    steps: int = 100
    """Number of optimizer steps in the whole run, earlier attempts included."""
    epochs: float | None = None
    """Number of times that the run reads its data, instead of train.steps: rounded up to whole steps once the data are
    prepared. With data.blend, as many samples as all sources have together count as one. null: train.steps says it."""
    seed: int = 1234
    """Seed of the initial weights, the data order and dropout."""
    frozen: tuple[str, ...] = ()
    """Parts of the model that are not trained: embedding, position, final_norm, head; layers, or some of them as
    layers.3 or layers.0-3, or a part of them as layers.0-3.attention; norms, biases, attention, mlp; or the beginning
    of tensors' names. They keep the weights that the run begins with (see checkpoint.init_from), and need no memory for
    gradients and moments. []: everything is trained."""
    log_every: int = 1
    """Number of steps between rows of metrics."""
    eval_every: int = 0
    """Number of steps between evaluations. 0: never."""
    eval_batches: int = 4
    """Number of global batches in one evaluation."""
    max_skipped_in_row: int = 10
    """A batch whose loss or gradients are not finite on any rank is skipped on all ranks, before the optimizer; more
    than this many skipped batches in a row end the run (exit code 5). 0: the first one does. fp16: overflows count
    too."""
    spike_policy: SpikePolicy = SpikePolicy.none
    """Choices: none (train on), skip (leave that batch out), rewind (go back to the last checkpoint and leave out the
    data since), stop (exit code 5). Any but none reads the loss in every step: on a GPU the host then waits for each
    step."""
    spike_window: int = 128
    """Number of steps before a loss that it is compared with; until there are as many, no loss is a spike."""
    spike_sigmas: float = 6.0
    """A loss is a spike when it is this many standard deviations above the mean of the window."""
    max_rewinds: int = 3
    """spike_policy=rewind: number of times that the run may go back without getting beyond the step of an earlier
    spike."""
