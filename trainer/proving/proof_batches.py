"""Tokens that a proof trains on: random ids, with documents and labels as the run's data have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from trainer.config.plan import RunPlan, keeps_documents_apart
from trainer.config.schema import BoundaryLabel, Packing, RecordKind, TridentConfig
from trainer.micro_batch import IGNORED, Documents, MicroBatch, Place

_DOCUMENT_BEGINS = 0.2
"""Probability that a token begins a document."""
_COUNTS = 0.6
"""Probability that a label counts, where some do not."""


@dataclass(frozen=True)
class GlobalBatch:
    """The global batch of one step, row by row."""

    ids: torch.Tensor
    """[G, S] int64."""
    labels: torch.Tensor
    """[G, S] int64; -100 where it does not count."""
    weights: torch.Tensor | None = None
    """[G, S] fp32 weights of the labels; None: 1 each."""
    documents: torch.Tensor | None = None
    """[G, S] number of each token's document in its row, if documents do not see each other."""

    def micro_batches(self, plan: RunPlan, replica: int, step: int, device: torch.device) -> Iterator[MicroBatch]:
        """Yield the micro-batches of a replica, as `BatchSource` gives them out."""
        size = plan.micro_batch_size
        for index in range(plan.num_micro_batches):
            first = (index * plan.data_parallel_size + replica) * size
            rows = slice(first, first + size)
            documents = None if self.documents is None else Documents.of(_begins(self.documents[rows])).to(device)
            weights = None if self.weights is None else self.weights[rows].to(device)
            place = Place(plan.seed, step, first)
            yield MicroBatch.of(self.ids[rows].to(device), self.labels[rows].to(device), weights, place, documents)

    def apart(self) -> list[list[torch.Tensor]]:
        """Return it as the oracle takes it: whole, or each document by itself, in which positions begin at 0."""
        parts = [self.ids, self.labels, *([] if self.weights is None else [self.weights])]
        if self.documents is None:
            return [parts]
        found = []
        for row, numbers in enumerate(self.documents):
            for number in numbers.unique():
                (places,) = torch.nonzero(numbers == number, as_tuple=True)
                inside = slice(int(places[0]), int(places[-1]) + 1)
                found.append([part[row : row + 1, inside] for part in parts])
        return found


def global_batches(config: TridentConfig, vocab_size: int, steps: int) -> list[GlobalBatch]:
    """Return the global batches of the first steps.

    Args:
        config: of a scaled run.
        vocab_size: number of token ids.
        steps: number of steps.
    """
    data, shape = config.data, (config.batch.global_batch_size, config.model.seq_length)
    numbers = torch.Generator().manual_seed(config.train.seed % 2**31)
    found = []
    for _ in range(steps):
        tokens = torch.randint(0, vocab_size, (shape[0], shape[1] + 1), generator=numbers)
        ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        begins = torch.rand(shape, generator=numbers) < _DOCUMENT_BEGINS
        begins[0, shape[1] // 2] = True
        documents = begins.long().cumsum(dim=1)
        if data.boundary_label is BoundaryLabel.ignore or data.records is not RecordKind.text:
            labels = labels.masked_fill(_ends(documents), IGNORED)
        if data.records is not RecordKind.text or data.packing is Packing.best_fit:
            # Prompts and padding: labels that do not count, and a sequence in which none does.
            labels = labels.masked_fill(torch.rand(shape, generator=numbers) >= _COUNTS, IGNORED)
            labels[-1] = IGNORED
        found.append(GlobalBatch(ids, labels, None, documents if keeps_documents_apart(data) else None))
    return found


def _begins(documents: torch.Tensor) -> torch.Tensor:
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return begins


def _ends(documents: torch.Tensor) -> torch.Tensor:
    ends = torch.ones_like(documents, dtype=torch.bool)
    ends[:, :-1] = documents[:, 1:] != documents[:, :-1]
    return ends
