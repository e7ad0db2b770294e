"""The data that a run evaluates with: a share that is held out, or files or a split of their own. No torch."""

from __future__ import annotations

from dataclasses import replace

from trainer.config.schema import DataConfig


def names_validation(data: DataConfig) -> bool:
    """Return whether validation data of their own are named."""
    return bool(data.validation_files) or data.hub_validation_split is not None


def has_validation(data: DataConfig) -> bool:
    """Return whether a source has validation data."""
    return names_validation(data) or data.validation_fraction > 0


def trained_on(data: DataConfig) -> DataConfig:
    """Return the keys of the training data alone, where validation data are named."""
    return replace(data, validation_files=(), hub_validation_split=None, validation_fraction=0.0)


def held_out_of(data: DataConfig) -> DataConfig:
    """Return the keys of the validation data alone, where they are named: all of them are read."""
    return replace(
        trained_on(data),
        files=data.validation_files or data.files,
        hub_split=data.hub_validation_split or data.hub_split,
        test_fraction=0.0,
        max_documents=None,
    )
