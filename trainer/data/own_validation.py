"""Data whose validation part comes from files or a split of its own: two sources, one of them held out. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from trainer.config.held_out import held_out_of, trained_on
from trainer.config.schema import TokenizerConfig, TokenizerKind, TridentConfig
from trainer.data.prepared import PreparedData
from trainer.data.token_files import TRAIN, VALIDATION
from trainer.data.token_manifest import Counts
from trainer.errors import DataError


def with_own_validation(
    config: TridentConfig, find: Callable[[TridentConfig], PreparedData | None]
) -> PreparedData | None:
    """Return the data of a config that names its validation data, or None if `find` finds one of the two not.

    Args:
        config: the config.
        find: returns the data of a config without such names.

    Raises:
        DataError: as `find`; it names the key where it is about the validation data.
    """
    data = config.data
    training = find(replace(config, data=trained_on(data)))
    if training is None:
        return None
    own = replace(config, data=held_out_of(data), tokenizer=_same_tokenizer(config, training))
    key = "data.validation_files" if data.validation_files else "data.hub_validation_split"
    try:
        found = find(own)
    except DataError as error:
        problem = str(error).replace("data.files", key).replace("data.hub_split", key).replace("to train on", "in it")
        raise DataError(problem, error.hints) from error
    return None if found is None else _joined(training, found)


def _same_tokenizer(config: TridentConfig, training: PreparedData) -> TokenizerConfig:
    """Return the keys of the training data's tokenizer: one that was trained is not trained again."""
    if config.tokenizer.kind is not TokenizerKind.bpe or training.tokenizer_folder is None:
        return config.tokenizer
    return replace(
        config.tokenizer, kind=TokenizerKind.pretrained, path=str(training.tokenizer_folder), vocab_size=None
    )


def _joined(training: PreparedData, held_out: PreparedData) -> PreparedData:
    first, second = training.manifest, held_out.manifest
    counts = Counts(
        *(sum(pair) for pair in zip(vars(first.counts).values(), vars(second.counts).values(), strict=True))
    )
    manifest = replace(
        first,
        parts={**first.parts, VALIDATION: tuple(one.outside(held_out.folder) for one in second.parts[TRAIN])},
        counts=counts,
        inputs=(*first.inputs, *second.inputs),
    )
    return replace(
        training,
        manifest=manifest,
        fingerprint=f"{training.fingerprint}-{held_out.fingerprint}",
        boundaries=manifest.ends() if training.boundaries is not None else None,
    )
