"""The loss of a global batch, which the micro-batches of all ranks make up: it has one definition.

It is the sum over the counted tokens of the global batch, each times its weight, divided by the sum of these weights.
A mean of the micro-batches' means would be another number unless all of them count equally many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from trainer.micro_batch import MicroBatch, as_divisor
from trainer.topology.groups import Group


def parts_of_a_batch(micro_batches: Sequence[MicroBatch], gradients: Group) -> tuple[list[MicroBatch], torch.Tensor]:
    """Return micro-batches as parts of one global batch, and the tokens that count in it, [] fp64.

    The loss of a global batch is the sum over its counted tokens divided by their number. Engines take the mean over
    micro-batches and replicas, so each micro-batch's sum is divided by the mean number of counted tokens: by exactly
    its own where all count. Collective over `gradients` (one number); no host sync on an accelerator.

    Args:
        micro_batches: this rank's micro-batches; at least one, as many on every rank.
        gradients: the ranks that average their gradients: they hold the other micro-batches.
    """
    counted = torch.stack([batch.counted() for batch in micro_batches]).sum()
    gradients.all_reduce(counted)
    divisor = as_divisor(counted / (len(micro_batches) * gradients.size))
    return [replace(batch, divisor=divisor) for batch in micro_batches], counted


def loss_of(mean: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the loss [] of a global batch, given the mean over its parts: NaN if no token counts. No host sync."""
    return torch.where(counted > 0, mean, torch.nan)
