"""A tokenizer that somebody has trained: a file, a folder, or one on the Hugging Face hub. No torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer.config.places import local_path
from trainer.config.schema import TokenizerConfig
from trainer.corpus.wording import reason
from trainer.data.end_of_text import KEY, ReadFile, beside, declared_end
from trainer.data.tokenizer import TOKENIZER_FILE, FileTokenizer, tokenizer_text
from trainer.data.vocab_merges import MERGES, SENTENCEPIECE, VOCAB, conversion, has_merges
from trainer.errors import DataError

_KEY_OF_PATH = "tokenizer.path"
_HUB_NAME = re.compile(r"\w([\w.-]*\w)?(/\w([\w.-]*\w)?)?")
"""Form of a model's name on the Hugging Face hub, with or without its owner."""


def pretrained_file(path: str, key: str = _KEY_OF_PATH) -> Path | None:
    """Return the local tokenizer.json that `tokenizer.path` means, or None if it can only be a Hugging Face name.

    Of a folder without one that has a vocab.json and a merges.txt it is the vocab.json.

    Args:
        path: the path as the user gave it.
        key: the key that it was given for; errors name it.

    Raises:
        DataError: it is a folder without that file, or it does not exist and is no such name.
    """
    local = local_path(path, key)
    file = Path(local, TOKENIZER_FILE) if os.path.isdir(local) else Path(local)
    if os.path.isfile(file):
        return file
    if has_merges(local):
        return Path(local, VOCAB)
    if os.path.exists(local):
        raise _no_tokenizer(local, key)
    if _HUB_NAME.fullmatch(path) is None or path.endswith(".json"):
        raise DataError(
            f"{key} must be a {TOKENIZER_FILE}, a folder with one, or a Hugging Face name, but {path!r} does not exist",
            hints=[] if os.path.isabs(local) else [f"paths are taken from {os.getcwd()}"],
        )
    return None


def _no_tokenizer(folder: str, key: str) -> DataError:
    model = next((name for name in SENTENCEPIECE if os.path.isfile(os.path.join(folder, name))), None)
    if model is None:
        return DataError(f"{key} must be a {TOKENIZER_FILE} or a folder with one, but {folder} holds none")
    found = f"{folder} holds only a sentencepiece model, {model}"
    return DataError(
        f"{key} must be a {TOKENIZER_FILE} or a folder with one, but {found}",
        hints=[f"write one with {conversion(folder)} (needs pip install sentencepiece)"],
    )


def pretrained_identity(settings: TokenizerConfig) -> list[object]:
    """Return everything that decides the ids of a pretrained tokenizer, except the content of its tokenizer.json.

    Raises:
        DataError: a file beside it cannot be understood.
    """
    file = pretrained_file(str(settings.path))
    says = settings.eos_token if file is None or settings.eos_token is not None else declared_end(beside(file))
    merges = [beside(file)(MERGES)] if file is not None and file.name == VOCAB else []
    return [settings.path, "ends with", says, *merges]


def load_pretrained(settings: TokenizerConfig, key: str = _KEY_OF_PATH) -> FileTokenizer:
    """Load a tokenizer.json file, the one in a folder, or the one of a Hugging Face model, as `tokenizer.path` says.

    Raises:
        DataError: there is none, or it cannot be used.
    """
    path = str(settings.path)
    local = pretrained_file(path, key)
    file, read = (
        (local, beside(local)) if local is not None else (_from_hub(path, TOKENIZER_FILE, key), _beside_on_hub(path))
    )
    return FileTokenizer(tokenizer_text(file, f"{key}={path}"), f"{key}={path}", settings.eos_token, read)


def _from_hub(name: str, file: str, key: str = _KEY_OF_PATH) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(name, file))
    # The library raises whatever its transport raises.
    except Exception as error:
        raise DataError(
            f"{key}={name} must be a local tokenizer or a Hugging Face model with a {file}, but: {reason(error)}",
            hints=["there is no such file or folder here; check the name and the network, or give a local folder"],
        ) from error


def _beside_on_hub(name: str) -> ReadFile:
    """Return a function that reads the other files of a Hugging Face model."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def read(file: str) -> str | None:
        try:
            return tokenizer_text(_from_hub(name, file), f"{file} of tokenizer.path={name}")
        except DataError as error:
            # Without a network it is not known whether there is such a file, unless it was looked up earlier.
            is_known = not isinstance(error.__cause__, LocalEntryNotFoundError)
            if isinstance(error.__cause__, EntryNotFoundError) and is_known:
                return None
            if try_to_load_from_cache(name, file) is _CACHED_NO_EXIST:
                return None
            raise DataError(
                f"{file} of tokenizer.path={name} must be within reach, since it may say which token ends a document, "
                f"but: {reason(error.__cause__ or error)}; set {KEY}, or check the network"
            ) from error

    return read
