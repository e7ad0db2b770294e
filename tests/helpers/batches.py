"""The micro-batches of a rank, made of the tokens of a global batch as `BatchSource` makes them: one sequence each."""

from __future__ import annotations

import torch

from trainer.config.plan import RunPlan
from trainer.micro_batch import MicroBatch, Place


def micro_batches_of(
    tokens: torch.Tensor, plan: RunPlan, dp_rank: int, step: int | None = None, weights: torch.Tensor | None = None
) -> list[MicroBatch]:
    """Return the micro-batches of `dp_rank`.

    Args:
        tokens: of the global batch, [G, S + 1].
        plan: of the run; its micro_batch_size is not looked at.
        dp_rank: whose.
        step: that trains on them.
        weights: of the labels, [G, S].
    """
    found = []
    for row in range(dp_rank, len(tokens), plan.data_parallel_size):
        ids, labels = tokens[row : row + 1, :-1].contiguous(), tokens[row : row + 1, 1:].contiguous()
        place = None if step is None else Place(plan.config.train.seed, step, row)
        found.append(MicroBatch.of(ids, labels, None if weights is None else weights[row : row + 1], place))
    return found


def labelled(labels: torch.Tensor, weights: torch.Tensor | None = None) -> MicroBatch:
    """Return a micro-batch for a loss alone, which does not look at ids."""
    return MicroBatch.of(labels, labels, weights)
