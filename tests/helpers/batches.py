"""The micro-batches of a rank, made of the tokens of a global batch as `BatchSource` makes them: one sequence each."""

from __future__ import annotations

import torch

from trainer.config.plan import RunPlan
from trainer.micro_batch import IGNORED, Documents, MicroBatch, Place


def micro_batches_of(
    tokens: torch.Tensor,
    plan: RunPlan,
    dp_rank: int,
    step: int | None = None,
    weights: torch.Tensor | None = None,
    documents: torch.Tensor | None = None,
    boundary: int | None = IGNORED,
) -> list[MicroBatch]:
    """Return the micro-batches of `dp_rank`.

    Args:
        tokens: of the global batch, [G, S + 1].
        plan: of the run; its micro_batch_size is not looked at.
        dp_rank: whose.
        step: that trains on them.
        weights: of the labels, [G, S]; where one is negative, the label is `IGNORED`, whatever its weight says.
        documents: number of the document of each token, [G, S].
        boundary: label of the last token of each; None: the token that follows it.
    """
    found = []
    for row in range(dp_rank, len(tokens), plan.data_parallel_size):
        ids, labels, *own = of_rows(tokens[row : row + 1], None if weights is None else weights[row : row + 1])
        place = None if step is None else Place(plan.config.train.seed, step, row)
        here = None if documents is None else documents[row : row + 1]
        if here is not None and boundary is not None:
            labels = labels.masked_fill(ends_of(here), boundary)
        apart = None if here is None else numbered(here)
        found.append(MicroBatch.of(ids, labels, own[0] if own else None, place, apart))
    return found


def numbered(documents: torch.Tensor) -> Documents:
    """Return documents by the number of each token's, [B, S]."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return Documents.of(begins)


def ends_of(documents: torch.Tensor) -> torch.Tensor:
    """Return which tokens of rows [B, S] are the last of their document."""
    ends = torch.ones_like(documents, dtype=torch.bool)
    ends[:, :-1] = documents[:, 1:] != documents[:, :-1]
    return ends


def of_rows(tokens: torch.Tensor, weights: torch.Tensor | None) -> list[torch.Tensor]:
    """Return ids and labels of tokens, and the weights of the labels if there are any; see `micro_batches_of`."""
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return [ids, labels] if weights is None else [ids, labels.masked_fill(weights < 0, IGNORED), weights.abs()]


def labelled(labels: torch.Tensor, weights: torch.Tensor | None = None) -> MicroBatch:
    """Return a micro-batch for a loss alone, which does not look at ids."""
    return MicroBatch.of(labels, labels, weights)
