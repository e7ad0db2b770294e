"""Losses of single sources of a blend: in steps that are reported, and in evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from trainer.micro_batch import LossSums, MicroBatch
from trainer.topology.groups import ParallelGroups


class SourceLosses:
    """The loss of each source in one step. The ranks that compute the loss add it up while they do.

    Args:
        names: names of the sources.
        micro_batches: this rank's part of the global batch.
        groups: this rank's place.
    """

    def __init__(self, names: Sequence[str], micro_batches: Sequence[MicroBatch], groups: ParallelGroups) -> None:
        self._names, self._groups = tuple(names), groups
        self._sums = torch.zeros((2, len(names)), dtype=torch.float64, device=groups.device)
        self.micro_batches = [self._watched(batch) for batch in micro_batches]
        """The same micro-batches; a step with them fills in the losses."""

    def _watched(self, batch: MicroBatch) -> MicroBatch:
        if batch.labels is None or batch.sources is None:
            return batch
        of_rows = torch.tensor(batch.sources, device=self._groups.device)
        self._sums[1].index_add_(0, of_rows, batch.token_weights().sum(dim=1).double())
        return replace(batch, losses=LossSums(of_rows, self._sums[0]))

    def read(self) -> dict[str, float]:
        """Return `loss/NAME`, in nats a token, of each source that had a counted token. Collective over the world.

        One all-reduce of two numbers a source, and a host sync: only for steps that are reported.
        """
        # Tensor-parallel ranks have computed the same losses.
        sums = self._sums if self._groups.tensor.rank == 0 else torch.zeros_like(self._sums)
        losses, counted = self._groups.world.all_reduce(sums).tolist()
        return {
            f"loss/{name}": loss / count
            for name, loss, count in zip(self._names, losses, counted, strict=True)
            if count > 0
        }
