"""The way in which a model is computed and trained: nothing here gives its weights another meaning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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
    frozen: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are not trained."""

    def padded(self, rows: int) -> int:
        """Return the rows of a vocabulary with its padding."""
        return rows + -rows % self.vocab_unit

    def std(self, init: Init) -> float:
        """Return the standard deviation of a tensor that is drawn."""
        return self.residual_std if init is Init.residual else self.init_std

    def trains(self, tensor: TensorSpec) -> bool:
        """Return whether the run trains a tensor."""
        return tensor.trainable and not any(_is_below(tensor.name, name) for name in self.frozen)


def _is_below(name: str, beginning: str) -> bool:
    """Return whether a name begins with whole parts of another: blocks.1.mlp with blocks.1, blocks.10.mlp not."""
    return f"{name}.".startswith(f"{beginning.rstrip('.')}.")
