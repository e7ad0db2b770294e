r"""Read Megatron-LM and GPT-NeoX `.bin`/`.idx` pairs: token shards that people already have. No torch.

Index layout (little endian): b"MMIDIDX\0\0", version u64 = 1, dtype code u8, sequence count u64, document count u64,
then sizes i32[sequences], byte offsets i64[sequences], document starts i64[documents].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.config.places import local_path
from trainer.config.schema import DataConfig
from trainer.corpus.inputs import file_identity
from trainer.corpus.wording import reason
from trainer.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def megatron_pairs(config: DataConfig) -> list[tuple[Path, Path]]:
    """Return the (.bin, .idx) files of each prefix in `data.files`, in that order, each once.

    Raises:
        DataError: no file is named, or one is missing.
    """
    if not config.files:
        raise DataError("data.source=megatron needs at least one .bin/.idx prefix in data.files, but it is empty")
    pairs: dict[Path, tuple[Path, Path]] = {}
    for name in config.files:
        prefix = local_path(name, "data.files").removesuffix(".bin").removesuffix(".idx")
        pair = (Path(prefix + ".bin").absolute(), Path(prefix + ".idx").absolute())
        for path in pair:
            if not path.is_file():
                raise DataError(f"data.files must name prefixes of .bin/.idx pairs, but {path} is missing")
        pairs.setdefault(pair[0].resolve(), pair)
    return list(pairs.values())


def megatron_identity(config: DataConfig) -> list[str]:
    """Return the values that decide the documents: part of the fingerprint under which they are cached.

    Raises:
        DataError: a file is missing.
    """
    # The key is here since earlier versions had it: their caches stay good.
    return [config.text_key, *(file_identity(path) for pair in megatron_pairs(config) for path in pair)]


def token_documents(config: DataConfig) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the token ids of each sequence in stored order, at most `data.max_documents`; empty ones are left out.

    Raises:
        DataError: an index is not of this format, or does not fit its data.
    """
    sequences = (tokens for data, index in megatron_pairs(config) for tokens in _read_pair(data, index) if len(tokens))
    return islice(sequences, config.max_documents)


def _read_pair(data: Path, index: Path) -> Iterator[npt.NDArray[np.int64]]:
    try:
        raw = index.read_bytes()
        size = data.stat().st_size
        # numpy cannot map an empty file.
        content = np.memmap(data, dtype="u1", mode="r") if size else np.empty(0, "u1")
    except OSError as error:
        raise DataError(f"data.files must be readable, but {data.with_suffix('')}: {reason(error)}") from error
    dtype, sizes, offsets = _read_index(raw, index)
    ends = offsets + sizes.astype(np.int64) * dtype.itemsize
    # An end is negative if a damaged offset overflows.
    if min(int(numbers.min(initial=0)) for numbers in (sizes, offsets, ends)) < 0:
        raise DataError(f"data.files: {index} must hold sizes and offsets of at least 0, but holds negative ones")
    end = int(ends.max(initial=0))
    if size < end:
        raise DataError(f"data.files: {data} must have {end} bytes by its index, but has {size}: it is truncated")
    for start, stop in zip(offsets.tolist(), ends.tolist(), strict=True):
        yield np.frombuffer(content[start:stop].tobytes(), dtype).astype(np.int64)


def _read_index(raw: bytes, index: Path) -> tuple[np.dtype[np.generic], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    if not raw.startswith(_MAGIC):
        raise DataError(f"data.files: {index} must be a Megatron index (MMIDIDX), but does not begin like one")
    if len(raw) < _HEADER.size:
        raise DataError(
            f"data.files: {index} must have at least {_HEADER.size} bytes, but has {len(raw)}: it is truncated"
        )
    _, version, code, sequences, documents = _HEADER.unpack_from(raw)
    if version != 1 or code not in _DTYPES:
        raise DataError(
            f"data.files: {index} must have version 1 and integer tokens, but has version {version} and type {code}"
        )
    expected = _HEADER.size + 12 * sequences + 8 * documents
    if len(raw) < expected:
        raise DataError(f"data.files: {index} must have {expected} bytes, but has {len(raw)}: it is truncated")
    sizes = np.frombuffer(raw, "<i4", sequences, _HEADER.size)
    offsets = np.frombuffer(raw, "<i8", sequences, _HEADER.size + 4 * sequences)
    return np.dtype(_DTYPES[code]), sizes, offsets
