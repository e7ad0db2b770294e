"""Read Megatron-LM and GPT-NeoX `.bin`/`.idx` pairs: token shards that people already have. No torch.

Index layout (little endian): b"MMIDIDX\\0\\0", version u64 = 1, dtype code u8, sequence count u64, document count u64, then
sizes i32[sequences], byte offsets i64[sequences], document starts i64[documents].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.config.schema import DataConfig
from trainer.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def megatron_pairs(config: DataConfig) -> list[tuple[Path, Path]]:
    """Return the (.bin, .idx) files of each prefix in `data.files`.

    Raises:
        DataError: nothing is named, or a file is missing.
    """
    if not config.files:
        raise DataError("data.source=megatron needs at least one .bin/.idx prefix in data.files, but it is empty")
    pairs = []
    for name in config.files:
        prefix = name.removesuffix(".bin").removesuffix(".idx")
        pair = (Path(prefix + ".bin"), Path(prefix + ".idx"))
        for path in pair:
            if not path.is_file():
                raise DataError(f"data.files must name prefixes of .bin/.idx pairs, but {path} is missing")
        pairs.append(pair)
    return pairs


def token_documents(config: DataConfig) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the token ids of each sequence, in stored order.

    Raises:
        DataError: an index is not of this format, or does not fit its data.
    """
    for data, index in megatron_pairs(config):
        yield from _read_pair(data, index)


def _read_pair(data: Path, index: Path) -> Iterator[npt.NDArray[np.int64]]:
    raw = index.read_bytes()
    if len(raw) < _HEADER.size or raw[:9] != _MAGIC:
        raise DataError(f"{index} must be a Megatron index (MMIDIDX), but does not begin like one")
    _, version, code, sequences, documents = _HEADER.unpack_from(raw)
    if version != 1 or code not in _DTYPES:
        raise DataError(f"{index} must have version 1 and integer tokens, but has version {version} and type {code}")
    expected = _HEADER.size + 12 * sequences + 8 * documents
    if len(raw) < expected:
        raise DataError(f"{index} must have {expected} bytes, but has {len(raw)}: it is truncated")
    sizes = np.frombuffer(raw, "<i4", sequences, _HEADER.size)
    offsets = np.frombuffer(raw, "<i8", sequences, _HEADER.size + 4 * sequences)
    dtype = np.dtype(_DTYPES[code])
    end = int((offsets + sizes.astype(np.int64) * dtype.itemsize).max()) if sequences else 0
    if data.stat().st_size < end:
        raise DataError(f"{data} must have {end} bytes by its index, but has {data.stat().st_size}: it is truncated")
    tokens = np.memmap(data, dtype="u1", mode="r") if end else np.empty(0, "u1")
    for size, offset in zip(sizes.tolist(), offsets.tolist(), strict=True):
        yield np.frombuffer(tokens[offset : offset + size * dtype.itemsize].tobytes(), dtype).astype(np.int64)
