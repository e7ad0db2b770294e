"""A tensor of a model: its name and size, its sharding over ranks, and its initial values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Init(Enum):
    """Initial values of a tensor. The standard deviations are the run's: see `Execution.std`."""

    normal = "normal"
    residual = "residual"
    """A matrix that writes into the residual stream: normal, with a smaller standard deviation."""
    ones = "ones"
    zeros = "zeros"
    uniform = "uniform"
    """Uniform in +-1 / sqrt(columns): the first matrix of an adapter, as PEFT draws it (Kaiming, a = sqrt(5))."""


@dataclass(frozen=True)
class Cut:
    """Sharding of a tensor over tensor-parallel ranks: each of its sections evenly, along one dimension."""

    dim: int
    sections: tuple[int, ...]
    """Global sizes of the fused blocks along `dim`; they add up to its size."""
    is_vocabulary: bool = False
    """The entries along `dim` are token ids: they are padded, so that every rank has as many."""
    heads: tuple[int, ...] = ()
    """Number of attention heads that each section is made of, which cannot be divided. Ranks of which there are more
    than heads all hold the whole section. Empty: sections are not made of heads."""

    def whole_sections(self, size: int) -> int:
        """Return how many of the last sections each of `size` ranks holds whole."""
        few = [heads < size for heads in self.heads]
        return len(few) - few.index(True) if True in few else 0


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the whole model, without padding: the same in every layout."""

    name: str
    """Global name, under which checkpoints and initial weights know it."""
    shape: tuple[int, ...]
    init: Init
    cut: Cut | None = None
    """Sharding; None: every tensor-parallel rank holds the whole tensor."""
    decays: bool = True
    """True if weight decay applies to it."""
    trainable: bool = True
    is_adapter: bool = False
    """True for a tensor that LoRA adds to the model."""

    def __post_init__(self) -> None:
        """Check that the sections fill the dimension."""
        if self.cut is not None and sum(self.cut.sections) != self.shape[self.cut.dim]:
            found, wanted = self.cut.sections, self.shape[self.cut.dim]
            raise ValueError(f"sections of {self.name} must add up to {wanted}, but are {found}")

    @property
    def numel(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """True if it has more than one dimension."""
        return len(self.shape) > 1

    def padding(self, vocab_unit: int) -> int:
        """Return how many entries must follow along the sharded dimension to make a vocabulary a multiple of a unit."""
        if self.cut is None or not self.cut.is_vocabulary:
            return 0
        return -self.shape[self.cut.dim] % vocab_unit

    def local_numel(self, tensor_parallel_size: int, vocab_unit: int) -> int:
        """Return the number of elements on one tensor-parallel rank, padding included."""
        if self.cut is None:
            return self.numel
        rows = self.shape[self.cut.dim]
        whole = self.cut.whole_sections(tensor_parallel_size)
        held = sum(self.cut.sections[len(self.cut.sections) - whole :])
        cut = rows - held + self.padding(vocab_unit)
        return self.numel // rows * (cut // tensor_parallel_size + held)
