"""The one face that the loop sees of both DeepSpeed engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel.shard import ShardSpec


@dataclass(frozen=True)
class StepResult:
    """Results of one optimizer step, still on the device: reading them syncs the host."""

    loss: torch.Tensor
    """[] fp32: loss of the global batch, the sum over its counted tokens divided by their number; the same on every
    rank. NaN if no token counts."""
    grad_norm: torch.Tensor
    """[] fp32: global L2 norm of the gradients before clipping, the same on every rank; not finite if skipped."""
    skipped: bool = False
    """True if the update was not applied: loss or gradients were not finite on some rank, the loss was too high, or no
    token counts. The same on every rank; known to the host."""
    is_empty: bool = False
    """True if it was skipped because no token of the global batch counts. The same on every rank; known to the host."""


@dataclass(frozen=True)
class Evaluation:
    """The loss of a global batch, still on the device."""

    loss: torch.Tensor
    """[] fp32: defined as `StepResult.loss`."""
    counted: torch.Tensor
    """[] fp64: number of its counted tokens, which is the sum of their weights; the same on every rank."""


class Recorded(NamedTuple):
    """The checksum of one tensor of a forward pass."""

    name: str
    """Name of the layer whose output it is."""
    is_received: bool
    """True if other ranks contributed to it."""
    value: int


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one rank's shard of one tensor, which this rank alone has to write."""

    kind: str
    """weight (fp32 master), or the name of a moment: `spec.stepping`."""
    spec: ShardSpec
    """Spec of the whole tensor, padding included."""
    tp_rank: int
    """Tensor-parallel rank of the shard; 0 for a tensor that is not sharded."""
    tensor_parallel_size: int
    start: int
    """Place of the elements in the flattened shard."""
    values: torch.Tensor
    """[numel] fp32 on CPU."""


ReadShard = Callable[[str, ShardSpec], torch.Tensor]
"""(kind, spec) -> this rank's shard of that tensor, fp32 on CPU, of shape `spec.local_shape(tensor_parallel_size)`."""


class Engine(Protocol):
    """Trains one model in one layout. Every method is collective over the world unless it says otherwise."""

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = math.inf
    ) -> StepResult:
        """Run forward and backward on this rank's micro-batches of a step, then the optimizer with `learning_rate`.

        If loss or gradients are not finite on any rank, the loss is above `loss_limit` (rounded to fp32), or no token
        of the global batch counts, the update is skipped on all ranks: weights, moments and the optimizer's step
        counters stay as they are. The host reads one number for that, the gradient norm, after backward.

        Args:
            micro_batches: in order, as many on every rank; they know their place if the model has dropout.
            learning_rate: the step's learning rate.
            loss_limit: a loss above it is not learned from.
        """

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
        """Return the loss of a global batch without touching weights or moments.

        It may have another number of micro-batches than a step's, as many on every rank.
        """

    def record(self, micro_batches: Sequence[MicroBatch]) -> list[Recorded]:
        """Evaluate, and return checksums of all that this rank computed and received, in order. Syncs the host."""

    def loss_scale(self) -> float | None:
        """Return the dynamic loss scale (fp16), otherwise None. Local; may sync the host."""

    def take_busy_seconds(self) -> float:
        """Return the seconds that this rank computed (forward and backward) since the last call. Local; may sync."""

    def take_own_seconds(self) -> float:
        """Return the mean seconds of a step's first forward pass since the last call, without waits for other ranks.

        NaN if the waits cannot be separated: with ZeRO-3, which gathers weights in between. Local; may sync.
        """

    def held_bytes(self) -> Mapping[str, int]:
        """Return the bytes of tensors on this rank's device: weights, gradients, master and moments. Local; no sync."""

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        """Return this rank's tensor-parallel shard of every parameter it holds, by global name. fp32, on CPU.

        Collective over the data-parallel group with ZeRO-3, whose shards it gathers.
        """

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        """Return how each of `local_parameters` is sharded. Local."""

    def averaged(self) -> AbstractContextManager[None]:
        """Let the average of the weights (`optimizer.ema_decay`) be the weights inside; nothing may be trained there.

        Afterwards the weights are bit for bit what they were. Collective on the way in and out.
        """

    def fragments(self, only_trained: bool = False) -> Iterator[Fragment]:
        """Yield copies of the weights and moments that this rank has to write. Over all ranks: every element once.

        Local. Needs a step, taken or restored.

        Args:
            only_trained: leave out the tensors that are not trained.
        """

    def scalars(self) -> dict[str, float]:
        """Return counters and the dynamic loss scale. Local, the same on every rank; may sync the host."""

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        """Load weights, moments and counters, saved in any layout. Local; call it before the first step."""
