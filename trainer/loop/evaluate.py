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
    losses = [engine.evaluate(source.micro_batches(batch)).detach().clone() for batch in range(1, num_batches + 1)]
    return float(torch.stack(losses).mean())
