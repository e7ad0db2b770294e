"""Shards of given tokens, and descriptions of data that no test reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.data.megatron_pair import PairWriter
from trainer.data.prepared import PreparedData
from trainer.data.shard_set import ShardSet
from trainer.data.token_files import TRAIN, VALIDATION, shard_prefix
from trainer.data.token_manifest import Counts, Manifest, Shard


def written_shard(
    folder: Path, documents: Sequence[npt.ArrayLike], part: str = TRAIN, number: int = 0, dtype: str = "uint16"
) -> Shard:
    """Write documents as a shard of a part."""
    folder.mkdir(parents=True, exist_ok=True)
    with PairWriter(shard_prefix(folder, part, number), dtype) as writer:
        for document in documents:
            writer.append(np.asarray(document, np.int64))
    return writer.shard()


def shard_set(folder: Path, documents: Sequence[npt.ArrayLike], dtype: str = "uint16") -> ShardSet:
    """Write documents as one shard, and return it as a stream."""
    return ShardSet(folder, [written_shard(folder, documents, dtype=dtype)])


def manifest_of(train: Sequence[Shard], validation: Sequence[Shard] = (), vocab_size: int = 10**4) -> Manifest:
    """Return the description of shards."""
    parts = {TRAIN: tuple(train), VALIDATION: tuple(validation)}
    return Manifest("test", None, vocab_size, None, parts, Counts(), (), {})


def prepared_of(
    folder: Path, train: Sequence[npt.ArrayLike], validation: Sequence[npt.ArrayLike] = (), dtype: str = "uint16"
) -> PreparedData:
    """Write the documents of both parts, a shard each."""
    found = manifest_of(
        [written_shard(folder, train, TRAIN, dtype=dtype)], [written_shard(folder, validation, VALIDATION, dtype=dtype)]
    )
    return PreparedData(folder, found.vocab_size, found, None, "fingerprint")


def unread(
    folder: Path, vocab_size: int = 10, content: str = "c", tokens: int = 10, tokenizer_folder: Path | None = None
) -> PreparedData:
    """Return data of which there is only the description."""
    one = Shard("train-00000.bin", "uint16", 0, tokens, 1, vocab_size - 1, None, content, "idx")
    return PreparedData(folder, vocab_size, manifest_of([one], [one], vocab_size), tokenizer_folder, "fingerprint")
