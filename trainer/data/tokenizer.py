"""Text to token ids and back: a byte-level BPE trained here, raw bytes, or a pretrained tokenizer. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.config.schema import TridentConfig
from trainer.corpus.wording import reason
from trainer.data.chat_template import KEY as KEY_OF_TEMPLATE
from trainer.data.chat_template import chat_template
from trainer.data.end_of_text import (
    END_OF_TEXT,
    SETTINGS,
    ReadFile,
    beside,
    end_of_text,
    first_known,
    nothing_beside,
)
from trainer.data.fast_encoding import WORTH_CHARACTERS, FastEncoder, fast_encoder
from trainer.data.vocab_merges import VOCAB, as_tokenizer_json
from trainer.errors import DataError
from trainer.files import write_atomically

DEFAULT_VOCABULARY = 2048
TRAINING_CHARACTERS = 20_000_000
"""Largest number of characters that a BPE is trained on; more changes its merges little and costs minutes."""
TOKENIZER_FILE = "tokenizer.json"
BYTES_MARK = "kind.json"


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
        self._fast: FastEncoder | None = None
        self._left = WORTH_CHARACTERS
        """Characters that `encode_arrays` encodes before it looks for a faster way."""

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
        """Return the ids of each text.

        A corpus is encoded by tiktoken if that is shown to give the same ids; otherwise the library encodes it, and
        does not note where in a text ids stand, which takes time.
        """
        texts = [_valid(text) for text in texts]
        if self._fast is None and self._left > 0:
            self._left -= sum(map(len, texts))
            self._fast = fast_encoder(self._tokenizer) if self._left <= 0 else None
        if self._fast is None:
            return self._encoded(texts)
        found = [self._fast.encode(text) for text in texts]
        rest = iter(self._encoded([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        return [next(rest) if ids is None else ids for ids in found]

    def _encoded(self, texts: list[str]) -> list[npt.NDArray[np.uint32]]:
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False) if texts else []
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
        write_atomically(folder / TOKENIZER_FILE, self._tokenizer.to_str())


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


def wanted_entries(config: TridentConfig) -> int:
    """Return the number of entries that a trained tokenizer shall have."""
    return config.tokenizer.vocab_size or config.model.vocab_size or DEFAULT_VOCABULARY


def tokenizer_text(file: Path, origin: str) -> str:
    """Return the content of a tokenizer.json, or what one would be of a vocab.json and its merges.txt.

    Raises:
        DataError: it cannot be read.
    """
    if file.name == VOCAB:
        return as_tokenizer_json(file, origin)
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{origin} must be readable, but is not: {reason(error)}") from error


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that `save` wrote.

    Raises:
        DataError: the folder holds no tokenizer.
    """
    if (folder / BYTES_MARK).is_file():
        return ByteTokenizer()
    file = folder / TOKENIZER_FILE
    return FileTokenizer(tokenizer_text(file, str(file)), str(file), read=beside(file), of_a_run=True)
