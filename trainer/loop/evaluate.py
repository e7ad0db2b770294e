"""Validation loss."""

from __future__ import annotations

import torch

from trainer.data.batches import BatchSource
from trainer.engine.face import Engine
from trainer.progress import Progress


def evaluate(engine: Engine, source: BatchSource, num_batches: int, progress: Progress | None = None) -> float:
    """Return the mean loss, in nats a token, over the first `num_batches` global batches of `source`.

    The same batches at every call, so that evaluations of one run compare. Collective over the world; every rank
    gets the same number. One host sync, at the end.
    """
    progress, losses = progress or Progress(), []
    for batch in range(num_batches):
        progress.enter("evaluate", batch + 1)
        losses.append(engine.evaluate(source.micro_batches(batch * source.tokens)).detach().clone())
    return float(torch.stack(losses).mean())
