"""A run's progress: the state that a checkpoint must hold besides weights and optimizer state. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.errors import CheckpointError


@dataclass
class TrainState:
    """Progress of a run. The loop alone changes it, after every optimizer step and in place; hooks read it.

    Data order, dropout and learning rate are functions of the seed, the position and the step, so this is enough to go
    on exactly where the run stopped, in any layout.
    """

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    position: int = 0
    """Tokens drawn from the stream of shuffled samples, over all ranks; the next step begins here."""
    tokens_seen: int = 0
    """Tokens read, over all ranks; those of skipped batches too."""
    sample_ledger: str = ""
    """Rolling hash of every token id read, in order. Kept on the reporting rank only."""
    sample_length: int = field(kw_only=True)
    """Tokens of a sample, the unit in which the training data are shuffled: `model.seq_length` of the run's first step,
    even if it has changed since."""
    stream: str = field(default="", kw_only=True)
    """Identity of the stream that `position` counts in: the training data and their order."""
    segments: list[dict[str, Any]] = field(default_factory=list, kw_only=True)
    """Plan of the stream, with its earlier data and weights, as `StreamPlan.to_list` gives it."""
    skipped_batches: int = field(default=0, kw_only=True)
    """Steps whose update was not applied."""
    skipped_in_row: int = field(default=0, kw_only=True)
    """Number of them in a row up to the last step."""
    recent_losses: list[float] = field(default_factory=list, kw_only=True)
    """Losses that the spike policy compares with: those of the last applied steps, oldest first; none without a
    policy."""

    def become(self, other: TrainState) -> None:
        """Take over everything of `other`, in place: whoever holds this state, or its list of losses, sees it."""
        losses = list(other.recent_losses)
        vars(self).update({**vars(other), "recent_losses": self.recent_losses})
        self.recent_losses[:] = losses

    def to_dict(self) -> dict[str, object]:
        """Return the state as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrainState:
        """Return the state that `to_dict` wrote.

        Raises:
            CheckpointError: an entry is missing, or has a wrong value.
        """
        # Checkpoints from versions that skipped no batches, or read one source, do not have these.
        with_defaults = {"segments": [], "skipped_batches": 0, "skipped_in_row": 0, "recent_losses": [], **values}
        return cls(
            sample_length=_count(values, "sample_length", least=1),
            step=_count(values, "step"),
            position=_count(values, "position"),
            stream=_text(values, "stream"),
            segments=_segments(with_defaults, "segments"),
            tokens_seen=_count(values, "tokens_seen"),
            sample_ledger=_text(values, "sample_ledger"),
            skipped_batches=_count(with_defaults, "skipped_batches"),
            skipped_in_row=_count(with_defaults, "skipped_in_row"),
            recent_losses=_losses(with_defaults, "recent_losses"),
        )


def _count(values: Mapping[str, object], key: str, least: int = 0) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise CheckpointError(f"the checkpoint's {key} must be a whole number of at least {least}, but is {value!r}")
    return value


def _text(values: Mapping[str, object], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        raise CheckpointError(f"the checkpoint's {key} must be text, but is {value!r}")
    return value


def _segments(values: Mapping[str, object], key: str) -> list[dict[str, Any]]:
    value = values.get(key)
    if not isinstance(value, list) or not all(isinstance(segment, dict) for segment in value):
        raise CheckpointError(f"the checkpoint's {key} must be a list of segments, but is {value!r}")
    return list(value)


def _losses(values: Mapping[str, object], key: str) -> list[float]:
    value = values.get(key)
    if not isinstance(value, list) or not all(isinstance(loss, float) and math.isfinite(loss) for loss in value):
        raise CheckpointError(f"the checkpoint's {key} must be a list of finite numbers, but is {value!r}")
    return list(value)
