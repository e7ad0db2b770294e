"""A micro-batch: the sequences that one rank puts through the model at once, as the value that every layer is handed.

No part of it travels between pipeline stages: each stage reads its own from the same deterministic source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch

from trainer.errors import DataError

IGNORED = -100
"""A label that does not count; the number that PyTorch's and Hugging Face's losses take by default."""


@dataclass(frozen=True)
class Place:
    """The step and the samples of a micro-batch: the part of a dropout key that all its elements share."""

    seed: int
    step: int
    first_sample: int
    """Index in the global batch of the micro-batch's first sample; the others follow it."""


@lru_cache(maxsize=16)
def sequence_positions(length: int, device: torch.device) -> torch.Tensor:
    """Return 0, 1, ..., length - 1 as `[1, length]` int64: the same tensor at each call.

    Tensors that are computed from it can therefore be cached with it as the key. Local; no host sync.
    """
    # Never an inference tensor, even if the first call comes from inference: autograd saves it.
    with torch.inference_mode(False), torch.no_grad():
        return torch.arange(length, device=device).unsqueeze(0)


def document_positions(documents: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its document, `[B, S]` int64, for the document of each `[B, S]`.

    The tokens of a document stand side by side. Local; no host sync.
    """
    rows = sequence_positions(documents.shape[1], documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return rows - torch.where(begins, rows, 0).cummax(dim=1).values


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of B sequences of S tokens: a token attends to its own only, in which positions begin at 0."""

    numbers: torch.Tensor
    """[B, S] int64: number of each token's document in its row."""
    starts: torch.Tensor
    """[n] int32: first token of each document among the B * S tokens, row after row; behind them B * S, at least once,
    until n is a power of two: programs that are compiled see few shapes."""
    lengths: tuple[tuple[int, ...], ...]
    """Tokens of each document of each row, known to the host."""

    @classmethod
    def of(cls, begins: torch.Tensor) -> Documents:
        """Return the documents of rows, given where they begin, [B, S] bool on the CPU. A row's first token does."""
        begins = begins.clone()
        begins[:, 0] = True
        places = begins.flatten().nonzero().squeeze(1)
        starts = torch.full((1 << len(places).bit_length(),), begins.numel(), dtype=torch.int32)
        starts[: len(places)] = places.int()
        edges = [[*row.nonzero().squeeze(1).tolist(), begins.shape[1]] for row in begins]
        lengths = tuple(tuple(end - first for first, end in pairwise(row)) for row in edges)
        return cls(begins.long().cumsum(dim=1) - 1, starts, lengths)

    def to(self, device: torch.device) -> Documents:
        """Return them with their tensors on a device. No host sync."""
        if device.type == "cpu":
            return self
        numbers, starts = (one.pin_memory().to(device, non_blocking=True) for one in (self.numbers, self.starts))
        return replace(self, numbers=numbers, starts=starts)

    def part(self, first: int, count: int) -> Documents:
        """Return those of some of the rows: a micro-batch's."""
        changes = self.numbers[first : first + count].diff(dim=1) != 0
        begins = torch.cat([torch.ones_like(changes[:, :1]), changes], dim=1)
        return Documents.of(begins)

    @property
    def attended(self) -> float:
        """Mean number of tokens of a token's own document."""
        every = [length for row in self.lengths for length in row]
        return sum(length * length for length in every) / sum(every)


@dataclass(frozen=True, eq=False)
class LossSums:
    """Sums of the losses of some micro-batches, by source. The head adds to them as it computes."""

    of_rows: torch.Tensor
    """[B] int64: source of each row of the micro-batch."""
    sums: torch.Tensor
    """[sources] fp64: shared by the micro-batches."""

    def add(self, losses: torch.Tensor, first: int = 0) -> None:
        """Add weighted losses of consecutive tokens, which stand as `[S, B]` does in memory. No host sync.

        Args:
            losses: [n].
            first: number of tokens before them.
        """
        rows = torch.arange(first, first + len(losses), device=losses.device) % len(self.of_rows)
        self.sums.index_add_(0, self.of_rows[rows], losses.double())


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """B sequences of S tokens. Made by `MicroBatch.of`."""

    input_ids: torch.Tensor
    """[B, S] int64. On a rank that looks at no ids, zeros of this shape that take no memory."""
    positions: torch.Tensor
    """[1, S] (all rows alike) or [B, S] int64: position of each token, for rotary and learned positions."""
    labels: torch.Tensor | None = None
    """[B, S] int64: the token after each input, or `IGNORED`. None: this rank has no loss to compute; a model that ends
    here returns logits."""
    weights: torch.Tensor | None = None
    """[B, S] fp32, finite and not negative: weight of each token. None: 1 where the label is not `IGNORED`."""
    documents: Documents | None = None
    """The documents of its rows. None: each row is one document."""
    place: Place | None = None
    """Its place in the run; None outside training, where there is no dropout."""
    divisor: torch.Tensor | None = None
    """[] fp32: number by which the sum of its losses is divided. None: its own counted tokens, which makes the mean."""
    count: int | None = None
    """Its counted tokens, on a rank that looks at no labels; None: they follow from labels and weights."""
    sources: tuple[int, ...] | None = None
    """Source of each row, in a blend."""
    losses: LossSums | None = None
    """Takes the losses of its rows; None: nobody asks."""

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        place: Place | None = None,
        documents: Documents | None = None,
    ) -> MicroBatch:
        """Return a micro-batch whose rows, or the documents in them, begin at position 0.

        Raises:
            ValueError: ids are not `[B, S]`, or labels, weights or documents are not shaped like them.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be [B, S], but have shape {tuple(input_ids.shape)}")
        numbers = None if documents is None else documents.numbers
        for name, tensor in (("labels", labels), ("weights", weights), ("documents", numbers)):
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(
                    f"{name} must be shaped like input_ids, {tuple(input_ids.shape)}, but are {tuple(tensor.shape)}"
                )
        if numbers is None:
            positions = sequence_positions(input_ids.shape[1], input_ids.device)
        else:
            positions = document_positions(numbers)
        return cls(input_ids, positions, labels, weights, documents, place)

    def targets(self) -> torch.Tensor:
        """Return the labels, [B, S].

        Raises:
            ValueError: it has none.
        """
        if self.labels is None:
            raise ValueError("a micro-batch must have labels for its loss, but has none")
        return self.labels

    def token_weights(self) -> torch.Tensor:
        """Return the weight of each token, [B, S] fp32: 0 where the label is `IGNORED`.

        No host sync on an accelerator.

        Raises:
            DataError: a weight is negative or not finite (checked on CPU only).
        """
        counts = (self.targets() != IGNORED).float()
        if self.weights is None:
            return counts
        if self.weights.device.type == "cpu" and not bool(((self.weights >= 0) & self.weights.isfinite()).all()):
            raise DataError("the weights of tokens must be finite and at least 0, but some are not")
        return counts * self.weights

    def counted(self) -> torch.Tensor:
        """Return its counted tokens, the sum of their weights, [] fp64. No host sync on an accelerator."""
        if self.labels is None and self.count is not None:
            return torch.full((), self.count, dtype=torch.float64, device=self.input_ids.device)
        return self.token_weights().sum(dtype=torch.float64)

    def loss_divisor(self) -> torch.Tensor:
        """Return the number by which the sum of its losses is divided, [] fp32; never 0."""
        return as_divisor(self.counted()) if self.divisor is None else self.divisor


def as_divisor(counted: torch.Tensor) -> torch.Tensor:
    """Return `counted` [] fp64 as a divisor, [] fp32: 1 instead of 0, since a sum over nothing is 0 already."""
    return torch.where(counted > 0, counted, 1.0).float()
