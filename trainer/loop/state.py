"""How far a run has come: what a checkpoint must hold besides weights and optimizer state. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from trainer.errors import CheckpointError


@dataclass
class TrainState:
    """Progress of a run. The loop alone changes it, after every optimizer step; hooks read it.

    Weights, data order, dropout and learning rate are functions of the seed and the step, so this is enough
    to go on exactly where the run stopped, in any layout.
    """

    step: int = 0
    """Optimizer steps done."""
    tokens_seen: int = 0
    """Tokens trained on, over all ranks."""
    sample_ledger: str = ""
    """Rolling hash of every token id trained on, in order. Kept on the reporting rank only."""

    def to_dict(self) -> dict[str, object]:
        """Return the state as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrainState:
        """Return the state that `to_dict` wrote.

        Raises:
            CheckpointError: an entry is missing, or is not what it must be.
        """
        return cls(
            step=_count(values, "step"),
            tokens_seen=_count(values, "tokens_seen"),
            sample_ledger=_text(values, "sample_ledger"),
        )


def _count(values: Mapping[str, object], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CheckpointError(f"the checkpoint's {key} must be a whole number of at least 0, but is {value!r}")
    return value


def _text(values: Mapping[str, object], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"the checkpoint's {key} must be text, but is {value!r}")
    return value
