"""The one face that the loop sees of both DeepSpeed engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel.shard import ShardSpec


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step leaves behind, still on the device: reading it is what syncs the host."""

    loss: torch.Tensor
    """[] fp32: of the global batch, the sum over its counted tokens divided by their number; the same on every rank.
    NaN if no token counts."""
    grad_norm: torch.Tensor
    """[] fp32: global L2 norm of the gradients before clipping, the same on every rank; not finite if skipped."""
    skipped: bool = False
    """Whether the update was not applied: loss or gradients were not finite somewhere, the loss was too high, or no
    token counts. The same on every rank; known to the host."""
    is_empty: bool = False
    """Whether it was skipped because no token of the global batch counts. Likewise."""


@dataclass(frozen=True)
class Evaluation:
    """The loss of a global batch, still on the device."""

    loss: torch.Tensor
    """[] fp32: as `StepResult.loss`."""
    counted: torch.Tensor
    """[] fp64: its counted tokens, the sum of their weights; the same on every rank."""


class Recorded(NamedTuple):
    """The checksum of one tensor of a forward pass."""

    name: str
    """Of the layer that it came out of."""
    is_received: bool
    """Whether other ranks had a part in it."""
    value: int


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one rank's shard of one tensor: what this rank alone has to write."""

    kind: str
    """weight (fp32 master), exp_avg or exp_avg_sq (AdamW's moments)."""
    spec: ShardSpec
    """Of the whole tensor, padding included."""
    tp_rank: int
    """Whose shard; 0 for a tensor that is not cut."""
    tensor_parallel_size: int
    start: int
    """Of the elements in the flattened shard."""
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
            learning_rate: of this step.
            loss_limit: a loss above it is not learned from.
        """

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
        """Return the loss of a global batch without touching weights or moments.

        It may have another number of micro-batches than a step's, as many on every rank.
        """

    def record(self, micro_batches: Sequence[MicroBatch]) -> list[Recorded]:
        """Do as `evaluate`, and return checksums of what this rank computed and received, in order. Syncs the host."""

    def loss_scale(self) -> float | None:
        """Return the dynamic loss scale (fp16), otherwise None. Local; may sync the host."""

    def take_busy_seconds(self) -> float:
        """Return the seconds that this rank computed (forward and backward) since the last call. Local; may sync."""

    def take_own_seconds(self) -> float:
        """Return the mean seconds of a step's first forward pass since the last call, without waits for other ranks.

        NaN where they cannot be taken apart: with ZeRO-3, which gathers weights in between. Local; may sync.
        """

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        """Return this rank's tensor-parallel shard of every parameter it holds, by global name. fp32, on CPU.

        Collective over the data-parallel group with ZeRO-3, whose shards it gathers.
        """

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        """Return how each of `local_parameters` is cut from its whole. Local."""

    def fragments(self) -> Iterator[Fragment]:
        """Yield copies of the weights and moments that this rank has to write. Over all ranks: every element once.

        Local. Needs a step, taken or restored.
        """

    def scalars(self) -> dict[str, float]:
        """Return counters and the dynamic loss scale. Local, the same on every rank; may sync the host."""

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        """Take weights, moments and counters, of whatever layout wrote them. Local; call before the first step."""
