"""The files of a cached folder: streams of tokens, and a description that tells whether they are whole. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

TRAIN, VALIDATION = "train", "validation"
"""Names of the two files of ids, without their suffix."""
MARKS = ".marks"
"""Suffix of the file of marks that lies beside the ids of packed examples."""
ENDS = ".ends"
"""Suffix of the file that lies beside the ids of text: the number of tokens up to the end of each document, int64."""
_META = "meta.json"
_ITEM_BYTES = {"uint16": 2, "uint32": 4}


@dataclass(frozen=True)
class Packed:
    """Facts about examples that are packed into sequences, of training and validation together."""

    seq_length: int
    examples: int
    """Examples in the sequences."""
    tokens: int
    """Tokens of these examples, without those that fill up the sequences."""
    learned: int
    """Tokens of them that count for the loss."""
    dropped: int
    """Examples that are left out because they are longer than a sequence."""
    truncated: int
    """Examples whose end is left out."""
    emptied: int
    """Examples that are left out because none of their tokens would count, truncated ones among them."""


@dataclass(frozen=True)
class ShardMeta:
    """The content of meta.json. It is written last: a folder without it is not whole."""

    format_version: int
    dtype: str
    """Type of the ids in the .bin files: uint16 or uint32."""
    tokenizer_vocab_size: int | None
    """Number of ids of the tokenizer in tokenizer/, or None if there is none."""
    train_tokens: int
    validation_tokens: int
    sizes: dict[str, int]
    """Bytes of every file of the folder, by its path in it."""
    blake2b: dict[str, str]
    """Hash of each file of tokens, marks or ends, to compare folders of different machines."""
    packed: Packed | None = None
    """Facts about packed examples; None for a stream of text."""

    @property
    def content(self) -> str:
        """Hash of the tokens, and of the marks of packed examples."""
        return "-".join(digest for name, digest in sorted(self.blake2b.items()) if not name.endswith(ENDS))

    @property
    def boundaries(self) -> str | None:
        """Hash of the places at which documents end; None if the folder does not say them."""
        found = [digest for name, digest in sorted(self.blake2b.items()) if name.endswith(ENDS)]
        return "-".join(found) or None


class ShardWriter:
    """A growing file of tokens. A context manager; the file is durable when it ends.

    Args:
        path: path of the file.
        dtype: uint16 or uint32, of marks uint8, of ends int64; the caller knows that every number fits.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.tokens = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO = path.open("wb")

    def __enter__(self) -> ShardWriter:
        return self

    def append(self, tokens: npt.NDArray[np.integer[Any]]) -> None:
        """Write tokens, or their marks, at the end."""
        content = tokens.astype(self._dtype).tobytes()
        self._file.write(content)
        self.digest.update(content)
        self.tokens += len(tokens)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())


class DocumentWriter:
    """The growing files of a part of text: its ids, and where its documents end. A context manager.

    Args:
        path: path of the file of ids; that of the ends lies beside it.
        dtype: type of the ids.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.ids = ShardWriter(path, dtype)
        self._ends = ShardWriter(path.with_suffix(ENDS), "<i8")
        self._names = (path.name, path.with_suffix(ENDS).name)
        self._files = ExitStack()

    def __enter__(self) -> DocumentWriter:
        for file in (self.ids, self._ends):
            self._files.enter_context(file)
        return self

    def append(self, tokens: npt.NDArray[np.int64]) -> None:
        """Write the tokens of a document at the end."""
        self.ids.append(tokens)
        if len(tokens):
            self._ends.append(np.array([self.ids.tokens]))

    @property
    def digests(self) -> dict[str, str]:
        """Hash of each file by its name."""
        return dict(zip(self._names, (file.digest.hexdigest() for file in (self.ids, self._ends)), strict=True))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)


def dtype_for(vocab_size: int) -> str:
    """Return the smallest type that holds the ids 0 to vocab_size - 1."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of every file of a folder, by its path in it."""
    files: Iterable[Path] = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def write_meta(folder: Path, meta: ShardMeta) -> None:
    """Write the description of a folder whose other files are complete."""
    held = {key: value for key, value in asdict(meta).items() if value is not None or key != "packed"}
    (folder / _META).write_text(json.dumps(held, indent=1) + "\n")


def read_meta(folder: Path) -> ShardMeta | None:
    """Return the description of a folder, or None unless every file of it is there in full size.

    Contents are not hashed: that would read every token at each start.
    """
    try:
        held = json.loads((folder / _META).read_text())
        packed = held.get("packed")
        meta = ShardMeta(**{**held, "packed": None if packed is None else Packed(**packed)})
        tokens = {"train.bin": meta.train_tokens, "validation.bin": meta.validation_tokens}
        expected = meta.sizes | {name: count * _ITEM_BYTES[meta.dtype] for name, count in tokens.items()}
        whole = all((folder / name).stat().st_size == size for name, size in expected.items())
    # A damaged description can be any JSON or none.
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return meta if whole else None
