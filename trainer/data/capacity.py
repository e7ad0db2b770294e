"""Checks that there is enough data for the batches that a run asks for. No torch: they run before a rank starts."""

from __future__ import annotations

from trainer.config.held_out import has_validation
from trainer.config.schema import TridentConfig
from trainer.data.prepared import PreparedData, Source, sources_of, those_of
from trainer.errors import DataError


def check_capacity(prepared: PreparedData, config: TridentConfig) -> None:
    """Check that the data hold a global batch to train on and, where it is evaluated, a sequence to evaluate.

    Raises:
        DataError: there are fewer.
    """
    check_training_capacity(prepared, config)
    if config.train.eval_every > 0:
        check_validation_capacity(prepared, config)


def check_training_capacity(prepared: PreparedData, config: TridentConfig) -> None:
    """Check that the training data hold at least one global batch.

    Raises:
        DataError: there are fewer.
    """
    size, limit, seq_length = config.batch.global_batch_size, config.data.max_samples, config.model.seq_length
    if limit is not None and limit < size:
        raise DataError(
            f"data.max_samples ({limit}) must be at least batch.global_batch_size ({size}); raise it, or lower "
            "batch.global_batch_size"
        )
    found = sequences(prepared, prepared.train_tokens, seq_length)
    if found < size:
        raise DataError(
            f"the training data must hold at least one global batch ({size} sequences of {seq_length} tokens), but "
            f"hold {prepared.train_tokens} tokens = {found} sequences; use more data, or lower "
            "batch.global_batch_size or model.seq_length"
        )


def check_validation_capacity(prepared: PreparedData, config: TridentConfig) -> None:
    """Check that the validation data of each source hold at least one sequence.

    Raises:
        DataError: there are fewer.
    """
    for source in evaluated_sources(prepared, config):
        if sequences(source.prepared, source.prepared.validation_tokens, config.model.seq_length) == 0:
            raise DataError(
                f"the validation data must hold at least one sequence of {config.model.seq_length} tokens, but "
                f"{those_of(source)}hold {source.prepared.validation_tokens} tokens; use more data, raise "
                "data.validation_fraction, or set train.eval_every=0"
            )


def evaluated_sources(prepared: PreparedData, config: TridentConfig) -> list[Source]:
    """Return the sources of which something is held out: those that are evaluated."""
    return [source for source in sources_of(prepared, config) if has_validation(source.data)]


def sequences(prepared: PreparedData, tokens: int, seq_length: int) -> int:
    """Return how many samples a part of the data gives.

    In a stream of text each needs one token more than its inputs, for the labels; packed sequences are samples.
    """
    if prepared.packed is not None:
        return tokens // seq_length
    return max(0, (tokens - 1) // seq_length)
