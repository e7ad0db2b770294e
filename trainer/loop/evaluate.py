"""Validation loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.data.batches import BatchSource
from trainer.data.prefetch import prefetched
from trainer.engine.face import Engine
from trainer.loop.session import Session
from trainer.loop.step_data import device_setter


def evaluate(engine: Engine, source: BatchSource, num_batches: int, session: Session, ahead: int) -> float:
    """Return the loss, in nats a token, over the first `num_batches` global batches of `source`; NaN if none counts.

    The sum over all their counted tokens, divided by the number of these. The same batches at every call, so that
    evaluations of one run compare. A thread reads `ahead` of them before they are needed. Collective over the world;
    every rank gets the same number. One host sync, at the end.
    """
    found = []
    batches = (source.micro_batches(batch * source.tokens) for batch in range(num_batches))
    with prefetched(batches, ahead, device_setter(session.groups.device)) as coming:
        for batch in range(num_batches):
            session.progress.enter("evaluate", batch + 1)
            found.append(engine.evaluate(next(coming)))
    counted = torch.stack([one.counted for one in found])
    losses = torch.where(counted > 0, torch.stack([one.loss for one in found]), 0.0)
    # Each by its share of the tokens: exactly 1 where all batches have as many.
    return float((losses * (counted / counted.mean()).float()).mean())


def mean_loss(losses: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean of the sources' losses by their weights; of all alike where none of them has a weight.

    A loss that is NaN, of a source in which nothing counts, makes it NaN.
    """
    if len(losses) == 1:
        return losses[0]
    weights = weights if any(weights) else [1.0] * len(losses)
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True) if weight) / sum(weights)
