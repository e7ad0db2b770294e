"""The global batch size of each step of a run: it may grow at the beginning. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.schema import BatchConfig


@dataclass(frozen=True)
class BatchSizes:
    """Global batch sizes, a function of the step alone: nothing to save, the same in every layout."""

    final: int
    """Sequences of a step after the warm-up."""
    warmup: tuple[tuple[int, int], ...] = ()
    """(last step, sequences of a step) of each part of the warm-up, in order."""

    def at(self, step: int) -> int:
        """Return the sequences of a step, counted from 1."""
        return next((size for last, size in self.warmup if step <= last), self.final)

    def sequences(self, steps: int) -> int:
        """Return the sequences of the first so many steps."""
        total = done = 0
        for last, size in self.warmup:
            count = max(0, min(last, steps) - done)
            total, done = total + count * size, done + count
        return total + (steps - done) * self.final


def batch_sizes(batch: BatchConfig, seq_length: int) -> BatchSizes:
    """Return the batch sizes of a run.

    Args:
        batch: keys that `validate` has accepted.
        seq_length: tokens of a sequence; a size counted in tokens ends with the step that reaches them.
    """
    if batch.rampup_steps:
        return BatchSizes(batch.global_batch_size, tuple(zip(batch.rampup_steps, batch.rampup_sizes, strict=True)))
    parts, last, tokens = [], 0, 0
    for until, size in zip(batch.rampup_tokens, batch.rampup_sizes, strict=True):
        count = max(0, -(-(until - tokens) // (size * seq_length)))
        last, tokens = last + count, tokens + count * size * seq_length
        parts.append((last, size))
    return BatchSizes(batch.global_batch_size, tuple(parts))
