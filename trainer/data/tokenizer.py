"""Text to token ids and back: a byte-level BPE trained here, raw bytes, or a pretrained tokenizer. No torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.config.places import local_path
from trainer.config.schema import TokenizerConfig, TokenizerKind, TridentConfig
from trainer.corpus.wording import reason
from trainer.data.chat_template import KEY as KEY_OF_TEMPLATE
from trainer.data.chat_template import chat_template
from trainer.data.end_of_text import (
    END_OF_TEXT,
    KEY,
    SETTINGS,
    ReadFile,
    beside,
    declared_end,
    end_of_text,
    first_known,
    nothing_beside,
)
from trainer.data.vocab_merges import MERGES, SENTENCEPIECE, VOCAB, as_tokenizer_json, conversion, has_merges
from trainer.errors import DataError
from trainer.files import write_atomically

DEFAULT_VOCABULARY = 2048
TRAINING_CHARACTERS = 20_000_000
"""Largest number of characters that a BPE is trained on; more changes its merges little and costs minutes."""
_FILE = "tokenizer.json"
BYTES_MARK = "kind.json"
_KEY_OF_PATH = "tokenizer.path"
_HUB_NAME = re.compile(r"\w([\w.-]*\w)?(/\w([\w.-]*\w)?)?")
"""Form of a model's name on the Hugging Face hub, with or without its owner."""


class Tokenizer(Protocol):
    """The part of a tokenizer that the rest of the project needs."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def eos_id(self) -> int:
        """Id that ends a document."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no text, such as the one that ends a document or an answer."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""

    def encode_arrays(self, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the same as `encode_batch` as arrays: for a corpus."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without special tokens."""

    def encode_whole(self, text: str) -> list[int]:
        """Return the ids of a text with the special tokens that the tokenizer's file puts around one, as BOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""

    def token(self, id_: int) -> str | None:
        """Return how an id is written in the vocabulary, or None if it has no such id."""

    def read(self, name: str) -> str | None:
        """Return the text of a file that lies beside it, or None if there is none."""

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer` reads into an existing folder."""


class ByteTokenizer:
    """A tokenizer of bytes: ids 0 to 255 are the bytes of UTF-8, 256 ends a document."""

    vocab_size = 257
    eos_id = 256
    special_ids = frozenset({256})

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the bytes of each text."""
        return [self.encode(text) for text in texts]

    def encode_arrays(self, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the bytes of each text."""
        found = (np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8) for text in texts)
        return [ids.astype(np.uint32) for ids in found]

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode("utf-8", errors="replace"))

    def encode_whole(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; bytes that are no UTF-8 become U+FFFD."""
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def token(self, id_: int) -> str | None:
        """Return the byte as Python writes it, or the name of the id that ends a document."""
        byte = repr(bytes([id_]))[1:] if 0 <= id_ < self.eos_id else None
        return END_OF_TEXT if id_ == self.eos_id else byte

    def read(self, name: str) -> str | None:
        """Return None: nothing lies beside it."""
        return None

    def save(self, folder: Path) -> None:
        """Write a file that names the kind of tokenizer."""
        write_atomically(folder / BYTES_MARK, json.dumps({"kind": "bytes"}))


class FileTokenizer:
    """A tokenizer of the `tokenizers` library. Like the library, it reads special tokens written out in a text as such.

    Args:
        text: content of a tokenizer.json.
        origin: the tokenizer's name in errors.
        eos_token: the token that ends a document; None: the one that the files beside it declare.
        read: reads the files beside it.
        of_a_run: it was saved by a run; an earlier version saved no file that names the token which ends a document.

    Raises:
        DataError: it cannot be read, or no token is known to end a document.
    """

    def __init__(
        self,
        text: str,
        origin: str,
        eos_token: str | None = None,
        read: ReadFile = nothing_beside,
        of_a_run: bool = False,
    ) -> None:
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        # The library raises bare Exception.
        except Exception as error:
            raise DataError(f"{origin} must be a tokenizer.json, but cannot be read: {reason(error)}") from error
        self._read = read
        if of_a_run and read(SETTINGS) is None:
            eos_token = first_known(self._tokenizer)
        self.eos_id: int = end_of_text(self._tokenizer, origin, eos_token, read)
        # Files saved for a classifier truncate or pad every text to one length.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(number for number, token in added.items() if token.special)
        # The number of entries would be too small if ids have gaps.
        self._vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def vocab_size(self) -> int:
        """Return the range of ids: the largest id plus one, special tokens included."""
        return self._vocab_size

    @property
    def eos_token(self) -> str:
        """Return the text of the token that ends a document."""
        return str(self._tokenizer.id_to_token(self.eos_id))

    @property
    def special_ids(self) -> frozenset[int]:
        """Return the ids of its special tokens."""
        return self._special_ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        encoded = self._tokenizer.encode_batch([_valid(text) for text in texts], add_special_tokens=False)
        return [item.ids for item in encoded]

    def encode_arrays(self, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        """Return the ids of each text; the library does not note where in it they stand, which takes time."""
        encoded = self._tokenizer.encode_batch_fast([_valid(text) for text in texts], add_special_tokens=False)
        return [np.array(item.ids, np.uint32) for item in encoded]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return list(self._tokenizer.encode(_valid(text), add_special_tokens=False).ids)

    def encode_whole(self, text: str) -> list[int]:
        """Return the ids of a text with the special tokens that its post-processor puts around one."""
        return list(self._tokenizer.encode(_valid(text)).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids)))

    def token(self, id_: int) -> str | None:
        """Return how an id is written in the vocabulary, or None if it has no such id."""
        return self._tokenizer.id_to_token(id_) if 0 <= id_ < self._vocab_size else None

    def read(self, name: str) -> str | None:
        """Return the text of a file that lies beside tokenizer.json, or None if there is none."""
        return self._read(name)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, and a tokenizer_config.json with the token that ends a document and the chat template.

        Of a Hugging Face model without a network the template is saved only if its file is here.
        """
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos_token}
        with suppress(DataError):
            template = chat_template(self.read)
            settings = (
                settings if template is None else {**template.tokens, **settings, KEY_OF_TEMPLATE: template.source}
            )
        write_atomically(folder / SETTINGS, json.dumps(settings, ensure_ascii=False) + "\n")
        write_atomically(folder / _FILE, self._tokenizer.to_str())


def _valid(text: str) -> str:
    """Return the text with `?` for lone surrogates: JSON and command lines can hold them, UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")


def train_bpe(texts: Iterable[str], vocab_size: int) -> FileTokenizer:
    """Train a byte-level BPE on the first `TRAINING_CHARACTERS` characters of `texts`. The same for the same text.

    If the text has too few pairs to merge, the vocabulary is smaller than `vocab_size`: entries that no text can reach
    would only be rows of the embedding that are never trained.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_bounded(texts), trainer)
    return FileTokenizer(tokenizer.to_str(), "the trained tokenizer", END_OF_TEXT)


def _bounded(texts: Iterable[str]) -> Iterator[str]:
    left = TRAINING_CHARACTERS
    for text in texts:
        yield _valid(text[:left])
        left -= len(text)
        if left <= 0:
            return


def make_tokenizer(config: TridentConfig, texts: Iterable[str]) -> Tokenizer:
    """Return the tokenizer that the config asks for; `texts` are read only to train one.

    Raises:
        DataError: a pretrained tokenizer cannot be used.
    """
    settings = config.tokenizer
    if settings.kind is TokenizerKind.bytes:
        return ByteTokenizer()
    if settings.kind is TokenizerKind.pretrained:
        return load_pretrained(settings)
    return train_bpe(texts, wanted_entries(config))


def wanted_entries(config: TridentConfig) -> int:
    """Return the number of entries that a trained tokenizer shall have."""
    return config.tokenizer.vocab_size or config.model.vocab_size or DEFAULT_VOCABULARY


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
    file = Path(local, _FILE) if os.path.isdir(local) else Path(local)
    if os.path.isfile(file):
        return file
    if has_merges(local):
        return Path(local, VOCAB)
    if os.path.exists(local):
        raise _no_tokenizer(local, key)
    if _HUB_NAME.fullmatch(path) is None or path.endswith(".json"):
        raise DataError(
            f"{key} must be a {_FILE}, a folder with one, or a Hugging Face name, but {path!r} does not exist",
            hints=[] if os.path.isabs(local) else [f"paths are taken from {os.getcwd()}"],
        )
    return None


def _no_tokenizer(folder: str, key: str) -> DataError:
    model = next((name for name in SENTENCEPIECE if os.path.isfile(os.path.join(folder, name))), None)
    if model is None:
        return DataError(f"{key} must be a {_FILE} or a folder with one, but {folder} holds none")
    return DataError(
        f"{key} must be a {_FILE} or a folder with one, but {folder} holds only a sentencepiece model, {model}",
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
    file, read = (local, beside(local)) if local is not None else (_from_hub(path, _FILE, key), _beside_on_hub(path))
    return FileTokenizer(_content(file, f"{key}={path}"), f"{key}={path}", settings.eos_token, read)


def _content(file: Path, origin: str) -> str:
    if file.name == VOCAB:
        return as_tokenizer_json(file, origin)
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{origin} must be readable, but is not: {reason(error)}") from error


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
            return _content(_from_hub(name, file), f"{file} of tokenizer.path={name}")
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


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that `save` wrote.

    Raises:
        DataError: the folder holds no tokenizer.
    """
    if (folder / BYTES_MARK).is_file():
        return ByteTokenizer()
    file = folder / _FILE
    return FileTokenizer(_content(file, str(file)), str(file), read=beside(file), of_a_run=True)
