"""The way in which a model is computed and trained: nothing here gives its weights another meaning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate

from trainer.spec.tensors import Init, TensorSpec


class RecomputeKind(Enum):
    """Activations that the backward pass computes again instead of keeping them (activation checkpointing)."""

    none = "none"
    selective = "selective"
    full = "full"


@dataclass(frozen=True)
class Execution:
    """Everything that a run may choose anew when it goes on with a model."""

    seq_length: int
    """Tokens in a training sequence."""
    vocab_unit: int = 1
    """Number of which the rows of the vocabulary are a multiple."""
    dropout: float = 0.0
    attention_dropout: float = 0.0
    init_std: float = 0.02
    residual_std: float = 0.02
    """Standard deviation of the matrices that write into the residual stream."""
    recompute: RecomputeKind = RecomputeKind.none
    fused_loss: bool = True
    """Head and loss are computed together, without the whole logits."""
    documents: bool = False
    """Sequences hold several documents, and no token attends to another one than its own."""
    attended: float | None = None
    """Mean number of tokens, in its sequence, of the document of a token; None if it is not known, or all of them."""
    frozen: Collection[str] = frozenset()
    """Global names, or beginnings of them in whole parts, of the tensors that are not trained."""

    @property
    def attended_length(self) -> float:
        """Number of keys, later ones included, that a token without a window attends to; it decides the FLOPs."""
        return self.seq_length if self.attended is None else self.attended

    def padded(self, rows: int) -> int:
        """Return the rows of a vocabulary with its padding."""
        return rows + -rows % self.vocab_unit

    def std(self, init: Init) -> float:
        """Return the standard deviation of a tensor that is drawn."""
        return self.residual_std if init is Init.residual else self.init_std

    def trains(self, tensor: TensorSpec) -> bool:
        """Return whether the run trains a tensor."""
        return tensor.trainable and not any(name in self.frozen for name in accumulate(tensor.name.split("."), _below))


def _below(owner: str, part: str) -> str:
    return f"{owner}.{part}"
