"""Files of safetensors say what they hold: names and shapes, read without the numbers. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import CheckpointError, first_line
from trainer.interchange.weight_index import weight_files

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    """Name in the file's header."""
    first_byte: int = 0
    """Place in the file; unused in a pickle."""


def stored_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors of a file by their names, from its header.

    Raises:
        CheckpointError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks the header, and that the file is as long as it says.
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} must hold tensors, but cannot be read: {first_line(error)}") from error
    for name, entry in header.items():
        if name != "__metadata__":
            first = _LENGTH_BYTES + length + entry["data_offsets"][0]
            yield name, StoredTensor(path, tuple(entry["shape"]), entry["dtype"], first)


class WeightHeaders:
    """Names and shapes of a folder's tensors.

    Args:
        folder: the folder.

    Raises:
        CheckpointError: there are no weights, or a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = weight_files(folder)[0]
        self.are_known = all(path.suffix == ".safetensors" for path in files)
        """False for pickles, which must be read to know what they hold."""
        self._shapes = {name: stored.shape for path in files if self.are_known for name, stored in stored_tensors(path)}

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return sorted(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._shapes[name]
