"""The numbers of a foreign run beside those of the experiment: parameters, tokens of a step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from trainer.config.models import make_model
from trainer.config.schema import TridentConfig
from trainer.migration.shape import There


@dataclass(frozen=True)
class Compared:
    """One number of both."""

    name: str
    there: int | None
    """None if the files do not say it."""
    here: int | None
    note: str = ""
    expected: int = 0
    """Known difference, there minus here."""
    changed_by: str = ""
    """Keys that the user set, by which the number may differ."""

    @property
    def agrees(self) -> bool:
        """True if both are the same, known differences apart; also if there is nothing to compare."""
        is_known = self.there is not None and self.here is not None
        return not is_known or bool(self.changed_by) or self.there - self.here == self.expected  # type: ignore[operator]


def compare(there: There, config: TridentConfig, wanted: Collection[str] = ()) -> list[Compared]:
    """Return the numbers of both runs, side by side.

    Args:
        there: numbers that were counted from the foreign settings alone.
        config: the experiment, composed.
        wanted: keys that the user set beside the files.
    """
    of_model = ", ".join(key for key in wanted if key.startswith("model.") and key != "model.vocab_size")
    of_step = ", ".join(key for key in wanted if key in ("batch.global_batch_size", "model.seq_length"))
    return [
        replace(one, changed_by=of_model if one.name.startswith("parameters") else of_step)
        for one in _numbers(there, config)
    ]


def _numbers(there: There, config: TridentConfig) -> list[Compared]:
    found: list[Compared] = []
    size = config.model.vocab_size
    if there.shape is not None:
        model = make_model(config.model, 1)
        rows = config.model.hidden_size * (1 if config.model.tied_embeddings else 2)
        counted = None if there.not_counted else there.shape.without_vocabulary
        note = f"not counted: {there.not_counted}" if there.not_counted else "; ".join(there.because)
        found.append(
            Compared(
                "parameters without vocabulary", counted, model.parameter_count - rows, note, there.more_parameters
            )
        )
        vocab = there.vocab_size
        if vocab is not None and size is not None:
            whole = None if there.not_counted else there.shape.parameters(vocab)
            found.append(
                Compared(
                    "parameters",
                    whole,
                    make_model(config.model, size).parameter_count,
                    _padding(there, vocab) if not there.not_counted else "",
                    there.more_parameters,
                )
            )
    here = config.batch.global_batch_size * config.model.seq_length
    if there.seq_length is None:
        found.append(Compared("sequences a step", there.sequences_per_step, config.batch.global_batch_size, ""))
    else:
        note = "" if there.tokens_per_step is not None else "there it depends on the number of GPUs, which nobody says"
        found.append(Compared("tokens a step", there.tokens_per_step, here, note))
    return found


def _padding(there: There, vocab: int) -> str:
    wide = there.padded_vocab_size
    if wide is None or wide == vocab or there.shape is None:
        return ""
    return f"{there.shape.parameters(wide):,} with a vocabulary padded from {vocab:,} to {wide:,}"
