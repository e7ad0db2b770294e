"""The safetensors container for tensors that are never all in memory: written and read in pieces.

The library's own writer wants every tensor of a file at once, and its reader maps the file, so that everything read
stays resident. The format is simple enough to do without them: the header's length in 8 bytes, the header as JSON, the
data. Headers that are read were checked by the library first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from trainer.checkpoint.manifest import FileFacts

ITEM_BYTES = 4
_DTYPE = "F32"
DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Number formats of a file's header -> size of an element in bytes."""
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
_ALIGNMENT = 8


class ContainerWriter:
    """Writes one file of tensors, in the order in which they are declared. Holds no file open between calls.

    Args:
        path: path of the file, which must not exist.
        shapes: key -> shape, or number of elements of a flat tensor.
        metadata: metadata of the header.
        dtype: number format of all tensors, one of `DTYPE_BYTES`.
        is_hashed: compute the hash of the file, which takes as long as copying it.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, int | tuple[int, ...]],
        metadata: Mapping[str, str],
        dtype: str = _DTYPE,
        is_hashed: bool = True,
    ) -> None:
        self._path = path
        self._digest = hashlib.blake2b(digest_size=16) if is_hashed else None
        header: dict[str, object] = {_METADATA: dict(metadata)}
        end = 0
        for key, size in shapes.items():
            shape = [size] if isinstance(size, int) else list(size)
            start, end = end, end + DTYPE_BYTES[dtype] * math.prod(shape)
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._written_bytes = 0
        self._size_bytes = _LENGTH_BYTES + len(text) + end
        self._write(len(text).to_bytes(_LENGTH_BYTES, "little") + text, os.O_CREAT | os.O_EXCL)

    @property
    def size_bytes(self) -> int:
        """Size of the file when it is finished, in bytes."""
        return self._size_bytes

    def append(self, values: torch.Tensor) -> None:
        """Write the next elements, of the file's number format, on CPU; they may be a part of a tensor.

        Raises:
            OSError: the file cannot be written.
        """
        self._write(values.contiguous().view(-1).view(torch.uint8).numpy().data)

    def _write(self, data: bytes | memoryview, flags: int = 0) -> None:
        if self._digest is not None:
            self._digest.update(data)
        self._written_bytes += len(data)
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | flags, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
        finally:
            os.close(handle)

    def finish(self) -> FileFacts:
        """Make the file durable, and return its size and hash; an empty hash if none was computed.

        Raises:
            OSError: the file cannot be written.
            ValueError: fewer elements came than were declared, or more.
        """
        if self._written_bytes != self._size_bytes:
            raise ValueError(f"{self._path} must get {self._size_bytes} bytes, but got {self._written_bytes}")
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return FileFacts(self._size_bytes, "" if self._digest is None else self._digest.hexdigest())


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, int]]]:
    """Return a file's metadata, and for each tensor its first byte in the file and its number of elements.

    Raises:
        SafetensorError: it is no such file, or damaged.
        OSError: it cannot be read.
        ValueError: a tensor is not fp32.
    """
    # The library maps the whole file, but touches only the header.
    with safe_open(path, framework="pt") as checked:
        metadata = dict(checked.metadata() or {})
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    tensors = {}
    for key, entry in header.items():
        if key == _METADATA:
            continue
        if entry["dtype"] != _DTYPE:
            raise ValueError(f"{key} must be {_DTYPE}, but is {entry['dtype']}")
        first, last = entry["data_offsets"]
        tensors[key] = (_LENGTH_BYTES + length + first, (last - first) // ITEM_BYTES)
    return metadata, tensors


def read_values(path: Path, first_byte: int, numel: int) -> torch.Tensor:
    """Return `numel` elements of a file, fp32 on CPU.

    Raises:
        OSError: it cannot be read, or is shorter.
    """
    values = torch.empty(numel, dtype=torch.float32)
    rest = values.numpy().data.cast("B")
    with path.open("rb", buffering=0) as file:
        file.seek(first_byte)
        while rest:
            found = file.readinto(rest)
            if not found:
                raise OSError(f"{path} is shorter than its header says")
            rest = rest[found:]
    return values
