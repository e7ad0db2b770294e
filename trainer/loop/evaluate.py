"""Validation loss."""

from __future__ import annotations

import torch

from trainer.data.batches import BatchSource
from trainer.engine.face import Engine
from trainer.progress import Progress


def evaluate(engine: Engine, source: BatchSource, num_batches: int, progress: Progress | None = None) -> float:
    """Return the loss, in nats a token, over the first `num_batches` global batches of `source`; NaN if none counts.

    The sum over all their counted tokens, divided by the number of these. The same batches at every call, so that
    evaluations of one run compare. Collective over the world; every rank gets the same number. One host sync, at the
    end.
    """
    progress, found = progress or Progress(), []
    for batch in range(num_batches):
        progress.enter("evaluate", batch + 1)
        found.append(engine.evaluate(source.micro_batches(batch * source.tokens)))
    counted = torch.stack([one.counted for one in found])
    losses = torch.where(counted > 0, torch.stack([one.loss for one in found]), 0.0)
    # Each by its share of the tokens: exactly 1 where all batches have as many.
    return float((losses * (counted / counted.mean()).float()).mean())
