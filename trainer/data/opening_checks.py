"""Checks of tokens that a run opens: there are some, of its vocabulary, with known documents. No torch."""

from __future__ import annotations

from trainer.config.schema import DataSource, TokenizerKind, TridentConfig
from trainer.data.prepared import looks_at_documents
from trainer.data.token_files import TRAIN, VALIDATION
from trainer.data.token_manifest import Manifest
from trainer.errors import DataError


def check_prepared(config: TridentConfig, manifest: Manifest) -> None:
    """Check that a run can use tokens.

    Raises:
        DataError: it cannot.
    """
    if manifest.tokens(TRAIN) == 0:
        raise _nothing_to_train_on(config, manifest)
    if manifest.tokenizer is not None:
        check_vocabulary(config, manifest.vocab_size)
    if looks_at_documents(config.data) and manifest.ends() is None:
        silent = next(one.name for part in manifest.parts.values() for one in part if one.boundaries == "none")
        raise DataError(
            "data.mask_documents and data.boundary_label need to know where documents end, but "
            f"{silent} does not say it; set data.eos_id, or leave them out"
        )


def _nothing_to_train_on(config: TridentConfig, manifest: Manifest) -> DataError:
    data = config.data
    keys = {
        DataSource.files: "data.files",
        DataSource.megatron: "data.files",
        DataSource.tokens: "data.files",
        DataSource.hub: f"data.hub_path={data.hub_path}",
    }
    source = keys.get(data.source, f"data.source={data.source.value}")
    if manifest.tokens(VALIDATION):
        return DataError(
            f"{source} must leave something to train on, but data.validation_fraction={data.validation_fraction} "
            "holds all of it out; lower data.validation_fraction, or use more data"
        )
    return DataError(f"{source} must give at least one document to train on, but gave none")


def check_vocabulary(config: TridentConfig, tokenizer_size: int) -> None:
    """Check that the model's vocabulary is that of the tokenizer, or may be larger.

    Raises:
        DataError: it is not.
    """
    wanted = config.model.vocab_size
    if wanted is None or wanted == tokenizer_size:
        return
    if wanted < tokenizer_size:
        raise DataError(
            f"model.vocab_size ({wanted}) must hold all of the tokenizer's ids, but it has {tokenizer_size}; "
            f"set model.vocab_size={tokenizer_size} or null"
        )
    if config.tokenizer.allow_unused_ids:
        return
    if config.tokenizer.kind is TokenizerKind.bpe:
        raise DataError(
            f"model.vocab_size ({wanted}) must not exceed the trained tokenizer's range, but the text is enough for "
            f"only {tokenizer_size} entries; use more text, model.vocab_size=null, or tokenizer.allow_unused_ids=true"
        )
    raise DataError(
        f"model.vocab_size ({wanted}) must not exceed the tokenizer's range ({tokenizer_size}): the rows above "
        f"would never be trained; set model.vocab_size={tokenizer_size} or null, or tokenizer.allow_unused_ids=true"
    )
