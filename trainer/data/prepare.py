"""Turn a source into token shards, once. Any number of processes may ask at the same time. No torch.

The cache is addressed by content: a folder's name is a hash of everything that decides its tokens. One process builds
it under a lock and renames it into place; the others wait and map it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import numpy.typing as npt

from trainer.config.schema import DataSource, TokenizerKind, TridentConfig
from trainer.data.sources import documents, identity
from trainer.data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer
from trainer.errors import DataError

FORMAT_VERSION = 1
BATCH_DOCUMENTS = 256
Say = Callable[[str], None]


@dataclass(frozen=True)
class PreparedData:
    """Tokens on disk, ready to be mapped."""

    folder: Path
    """Holds train.bin, validation.bin, meta.json and, where there is one, tokenizer/."""
    vocab_size: int
    """Number of ids that the model must know: `model.vocab_size`, or the tokenizer's."""
    dtype: str
    """Of the .bin files: uint16 or uint32."""
    train_tokens: int
    validation_tokens: int
    tokenizer_folder: Path | None
    fingerprint: str


def cache_folder(config: TridentConfig) -> Path:
    """Return where shards are cached: `data.cache_dir`, $TRIDENT_CACHE, or ~/.cache/trident."""
    named = config.data.cache_dir or os.environ.get("TRIDENT_CACHE") or "~/.cache/trident"
    return Path(named).expanduser()


def prepare(config: TridentConfig, say: Say | None = None) -> PreparedData:
    """Return the tokens of a config's data, building them first where needed.

    Args:
        config: a validated one.
        say: told what is being done when it takes a while.

    Raises:
        DataError: source, tokenizer or cache folder cannot be used, or vocabularies do not fit.
    """
    fingerprint = _fingerprint(config)
    root = cache_folder(config)
    folder = root / fingerprint
    if not _is_whole(folder):
        with ExitStack() as held:
            try:
                root.mkdir(parents=True, exist_ok=True)
                held.enter_context(filelock.FileLock(root / f"{fingerprint}.lock"))
            except OSError as error:
                raise DataError(f"data.cache_dir must be a folder that can be written, but {root}: {error}") from error
            # Another process may have built it while this one waited.
            if not _is_whole(folder):
                _build(config, folder, say or _silent)
    return _opened(config, folder)


def _silent(text: str) -> None:
    """Say nothing."""


def _fingerprint(config: TridentConfig) -> str:
    data, tokenizer = config.data, config.tokenizer
    facts: list[object] = [FORMAT_VERSION, data.source.value, data.max_documents, data.validation_fraction]
    if data.source is DataSource.synthetic:
        facts += [data.synthetic_tokens, config.model.vocab_size, config.train.seed]
    else:
        facts += identity(data)
        facts += [tokenizer.kind.value, tokenizer.path]
        if tokenizer.kind is TokenizerKind.bpe:
            facts.append(tokenizer.vocab_size or config.model.vocab_size)
        if tokenizer.kind is TokenizerKind.pretrained and Path(str(tokenizer.path)).is_file():
            facts.append(Path(str(tokenizer.path)).stat().st_mtime_ns)
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def _is_whole(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return all((folder / name).stat().st_size == size for name, size in meta["sizes"].items())
    except (OSError, ValueError, KeyError):
        return False


def _build(config: TridentConfig, folder: Path, say: Say) -> None:
    if folder.exists():
        say(f"the cached tokens in {folder} are damaged: building them again")
        shutil.rmtree(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        meta = _write_tokens(config, partial, say)
        (partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        partial.rename(folder)
    except OSError as error:
        raise DataError(f"data.cache_dir must have room for the tokens, but {folder.parent}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_tokens(config: TridentConfig, folder: Path, say: Say) -> dict[str, object]:
    data = config.data
    if data.source is DataSource.synthetic:
        tokenizer, arrays = None, _synthetic(config)
        vocab_size = config.model.vocab_size or 0
    elif data.source is DataSource.megatron:
        tokenizer, arrays = None, _megatron(config)
        vocab_size = config.model.vocab_size or 0
    else:
        say(f"tokenising data.source={data.source.value}")
        tokenizer = make_tokenizer(config, _training_part(config))
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer")
        vocab_size = tokenizer.vocab_size
        arrays = _tokenised(config, tokenizer)
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    writers = {name: _Shard(folder / f"{name}.bin", dtype) for name in ("train", "validation")}
    for is_validation, tokens in arrays:
        writers["validation" if is_validation else "train"].append(tokens)
    for writer in writers.values():
        writer.close()
    return {
        "format_version": FORMAT_VERSION,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "has_tokenizer": tokenizer is not None,
        "tokens": {name: writer.tokens for name, writer in writers.items()},
        "sizes": {f"{name}.bin": writer.path.stat().st_size for name, writer in writers.items()},
        "blake2b": {f"{name}.bin": writer.digest.hexdigest() for name, writer in writers.items()},
    }


class _Shard:
    """A growing file of tokens."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self.tokens = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO = path.open("wb")

    def append(self, tokens: npt.NDArray[np.int64]) -> None:
        """Write tokens at the end."""
        content = tokens.astype(self._dtype).tobytes()
        self._file.write(content)
        self.digest.update(content)
        self.tokens += len(tokens)

    def close(self) -> None:
        """Make the file durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def is_held_out(text: str, fraction: float) -> bool:
    """Return whether a document is for validation: decided by its text alone, so that copies stay together."""
    digest = hashlib.blake2b(text.encode("utf-8", errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * (1 << 64)


def _training_part(config: TridentConfig) -> Iterator[str]:
    fraction = config.data.validation_fraction
    return (text for text in documents(config.data) if not is_held_out(text, fraction))


def _tokenised(config: TridentConfig, tokenizer: Tokenizer) -> Iterator[tuple[bool, npt.NDArray[np.int64]]]:
    source = documents(config.data)
    while texts := list(islice(source, BATCH_DOCUMENTS)):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            yield is_held_out(text, config.data.validation_fraction), np.array([*ids, tokenizer.eos_id], dtype=np.int64)


def _megatron(config: TridentConfig) -> Iterator[tuple[bool, npt.NDArray[np.int64]]]:
    from trainer.data.megatron import token_documents

    limit = config.model.vocab_size or 0
    for tokens in token_documents(config.data):
        if len(tokens) and (tokens.min() < 0 or tokens.max() >= limit):
            raise DataError(
                f"token ids of data.files must be in [0, model.vocab_size ({limit})), but one is "
                f"{tokens.max() if tokens.max() >= limit else tokens.min()}"
            )
        yield is_held_out(tokens.tobytes().hex(), config.data.validation_fraction), tokens


def _synthetic(config: TridentConfig) -> Iterator[tuple[bool, npt.NDArray[np.int64]]]:
    from trainer.data.synthetic import synthetic_tokens

    assert config.model.vocab_size is not None, "validation asks for it"
    tokens = synthetic_tokens(config.data.synthetic_tokens, config.model.vocab_size, config.train.seed)
    held_out = int(len(tokens) * config.data.validation_fraction)
    yield False, tokens[: len(tokens) - held_out]
    yield True, tokens[len(tokens) - held_out :]


def _opened(config: TridentConfig, folder: Path) -> PreparedData:
    meta = json.loads((folder / "meta.json").read_text())
    tokens = meta["tokens"]
    if tokens["train"] == 0:
        raise DataError(
            f"data.source={config.data.source.value} must give at least one document to train on, but gave none"
        )
    tokenizer_folder = folder / "tokenizer" if meta["has_tokenizer"] else None
    vocab_size = config.model.vocab_size or int(meta["vocab_size"])
    if tokenizer_folder is not None:
        _check_vocabulary(config, load_tokenizer(tokenizer_folder).vocab_size)
    return PreparedData(
        folder, vocab_size, meta["dtype"], tokens["train"], tokens["validation"], tokenizer_folder, folder.name
    )


def _check_vocabulary(config: TridentConfig, tokenizer_size: int) -> None:
    wanted = config.model.vocab_size
    if wanted is None or wanted == tokenizer_size:
        return
    if wanted < tokenizer_size:
        raise DataError(
            f"model.vocab_size ({wanted}) must hold all of the tokenizer's ids, but it has {tokenizer_size}; "
            f"set model.vocab_size={tokenizer_size} or null"
        )
    if not config.tokenizer.allow_unused_ids:
        raise DataError(
            f"model.vocab_size ({wanted}) must not exceed the tokenizer's range ({tokenizer_size}): the rows above "
            f"would never be trained; set model.vocab_size={tokenizer_size} or null, or tokenizer.allow_unused_ids=true"
        )
