"""A micro-batch that is the same in every layout, for comparing one forward pass with another."""

from __future__ import annotations

import torch

from trainer.config.plan import RunPlan
from trainer.micro_batch import MicroBatch

_STRIDE = 7919
"""A prime, so that the tokens go around the whole vocabulary."""


def fixed_micro_batches(plan: RunPlan, device: torch.device, length: int | None = None) -> list[MicroBatch]:
    """Return the fixed micro-batch, as often as the schedule needs it.

    The tokens are a function of the vocabulary's size and of the place in the sequence. Every row and every rank has
    the same, so neither micro-batch size nor layout changes the mean loss.

    Args:
        plan: numbers of the run.
        device: device of the tokens.
        length: length of the sequences, in tokens; None: as long as the run's.
    """
    own = plan.execution.seq_length
    places = torch.arange((length or own) + 1, device=device)
    row = (places * _STRIDE + places // 7) % plan.model.vocab_size
    # Longer sequences are fewer, so that there are about as many tokens as the run computes at once anyway.
    count = max(1, plan.micro_batch_size * own // (length or own))
    rows = row.expand(count, -1)
    batch = MicroBatch.of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    return [batch] * plan.schedule.fewest_micro_batches(plan.pipeline_parallel_size)
