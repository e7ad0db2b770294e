"""A micro-batch that is the same in every layout, for what compares one forward pass with another."""

from __future__ import annotations

import torch

from trainer.config.plan import RunPlan
from trainer.data.batches import MicroBatch

_STRIDE = 7919
"""A prime: the tokens go around the whole vocabulary."""


def fixed_micro_batches(plan: RunPlan, device: torch.device) -> list[MicroBatch]:
    """Return the fixed micro-batch, as often as the schedule needs it.

    The tokens are a function of the vocabulary's size and of the place in the sequence. Every row and every rank has
    the same, so neither micro-batch size nor layout changes the mean loss.
    """
    places = torch.arange(plan.model.seq_length + 1, device=device)
    row = (places * _STRIDE + places // 7) % plan.model.vocab_size
    rows = row.expand(plan.config.batch.micro_batch_size, -1)
    batch = MicroBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    return [batch] * plan.schedule.fewest_micro_batches(plan.pipeline_parallel_size)
