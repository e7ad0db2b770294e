"""Prepared tokens as Megatron pairs for other trainers: each part of a source as one pair. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.config.schema import TridentConfig
from trainer.data.megatron_pair import PairWriter
from trainer.data.prepared import ALONE, PreparedData, sources_of
from trainer.data.shard_set import ShardSet
from trainer.data.token_files import dtype_for
from trainer.data.token_manifest import PARTS
from trainer.errors import ConfigError, DataError
from trainer.files import storage_faults
from trainer.progress import current

_BLOCK = 1 << 22
"""Tokens that are copied at once."""
_UNFINISHED = ".partial"
KEY = "PREFIX"


def write_pairs(prepared: PreparedData, config: TridentConfig, prefix: Path) -> Iterator[PairWriter]:
    """Write each part that has tokens as a pair, PREFIX_train.bin and .idx and so on; yield each when it is whole.

    Of a blend, each source has pairs of its own: PREFIX_NAME_train.

    Raises:
        ConfigError: a pair is there already, or its folder is not.
        DataError: the tokens are packed examples, whose marks a pair cannot have.
        StorageError: the disk is full, or cannot be written.
    """
    if prepared.packed is not None:
        raise DataError(
            f"a Megatron pair holds documents alone, but data.records={config.data.records.value} are examples that "
            "say which of their tokens count; use data.records=text"
        )
    if not prefix.parent.is_dir():
        raise ConfigError(f"{KEY} must be in a folder that exists, but {prefix.parent} is none; make it")
    wanted = []
    for source in sources_of(prepared, config):
        name = "" if source.name == ALONE else f"_{source.name}"
        for part in PARTS:
            shards = source.prepared.shards(part)
            if len(shards):
                wanted.append((prefix.with_name(f"{prefix.name}{name}_{part}"), shards))
    for path, _ in wanted:
        for suffix in (".bin", ".idx"):
            if Path(f"{path}{suffix}").exists():
                raise ConfigError(f"{KEY} must name pairs that are not there yet, but {path}{suffix} is; change it")
    dtype = dtype_for(prepared.vocab_size)
    for path, shards in wanted:
        yield _write(path, shards, dtype)


def _write(path: Path, shards: ShardSet, dtype: str) -> PairWriter:
    unfinished = path.with_name(path.name + _UNFINISHED)
    with storage_faults(path, KEY):
        try:
            with PairWriter(unfinished, dtype) as writer:
                for start in range(0, len(shards), _BLOCK):
                    current().beat()
                    count = min(_BLOCK, len(shards) - start)
                    _append(writer, shards, start, count)
            # The index comes last: a pair without it is none.
            for suffix in (".bin", ".idx"):
                Path(f"{unfinished}{suffix}").rename(f"{path}{suffix}")
        finally:
            for suffix in (".bin", ".idx"):
                Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
    writer.prefix = path
    return writer


def _append(writer: PairWriter, shards: ShardSet, start: int, count: int) -> None:
    ids = shards.tokens(start, count).astype(np.dtype(writer.dtype).newbyteorder("<"))
    places = np.flatnonzero(shards.begins(start, count))
    if len(places) and places[0] == 0:
        # The document of the block before has ended.
        writer.append_raw(b"", np.zeros(1, np.int64))
        places = places[1:]
    # Whether the last one goes on is not known yet.
    lengths = np.diff(np.concatenate([[0], places, [count]]))
    writer.append_raw(ids.tobytes(), lengths, is_open=True)
