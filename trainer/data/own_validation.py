"""Data whose validation part comes from files or a split of its own: two sources, one of them held out. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from trainer.config.held_out import held_out_of, trained_on
from trainer.config.schema import DataConfig, TokenizerConfig, TokenizerKind, TridentConfig
from trainer.data.prepared import PreparedData
from trainer.data.token_files import TRAIN, VALIDATION
from trainer.data.token_manifest import Counts, Manifest
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
    if found is None:
        return None
    _check_apart(training.manifest, found.manifest, data)
    return _joined(training, found)


def _check_apart(training: Manifest, held_out: Manifest, data: DataConfig) -> None:
    """Refuse data that are trained on and held out at once: one file under any of its names, or copies of all of it."""
    if data.hub_validation_split is not None and not data.validation_files:
        return  # a split is judged by its name, before anything is read
    hint = "data.validation_fraction holds documents of the same files out"
    trained_on = {os.path.realpath(path): path for path in map(_path, training.inputs) if path is not None}
    for path in map(_path, held_out.inputs):
        if path is not None and os.path.realpath(path) in trained_on:
            raise DataError(
                f"data.validation_files must name other files than data.files, but both name {path}; "
                "leave it out of one of them",
                hints=[hint],
            )
    contents = {shard.blake2b for shard in training.parts[TRAIN] if shard.tokens}
    if any(shard.blake2b in contents for shard in held_out.parts[TRAIN]):
        raise DataError(
            "data.validation_files must hold other documents than data.files, but the tokens of a whole shard are the "
            "same; name other files",
            hints=[hint],
        )


def _path(identity: str) -> str | None:
    """Return the path in the identity of a file of this machine; None for another fact about the input."""
    path, *facts = identity.rsplit(":", 2)
    return path if len(facts) == 2 and os.path.isabs(path) and all(fact.isdigit() for fact in facts) else None


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
