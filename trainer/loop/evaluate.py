"""Validation loss."""

from __future__ import annotations

import torch

from trainer.data.batches import BatchSource
from trainer.engine.face import Engine


def evaluate(engine: Engine, source: BatchSource, num_batches: int) -> float:
    """Return the mean loss, in nats a token, over the first `num_batches` global batches of `source`.

    The same batches at every call, so that evaluations of one run compare. Collective over the world; every rank
    gets the same number. One host sync, at the end.
    """
    positions = (batch * source.tokens for batch in range(num_batches))
    losses = [engine.evaluate(source.micro_batches(position)).detach().clone() for position in positions]
    return float(torch.stack(losses).mean())
