"""Files of safetensors say what they hold: names and shapes, read without the numbers. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
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


def indexed_tensors(
    folder: Path, listed: Callable[[Path], Iterable[tuple[str, StoredTensor]]]
) -> dict[str, StoredTensor]:
    """Return the tensors of a folder by their names: where its index names a file, the one in that file.

    Args:
        folder: the folder.
        listed: returns the tensors of a file by their names.

    Raises:
        CheckpointError: there are no weights, a file is missing, or the index names what is not there.
    """
    files, indexed = weight_files(folder)
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, stored in listed(path):
            if name in found and indexed.get(name, path.name) != path.name:
                continue
            found[name] = stored
    for name, file in indexed.items():
        if name not in found or found[name].path.name != file:
            raise CheckpointError(f"{folder} must hold {name} in {file}, as its index says, but does not")
    return found


class WeightHeaders:
    """Names and shapes of a folder's tensors.

    Args:
        folder: the folder.

    Raises:
        CheckpointError: as `indexed_tensors`, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.are_known = all(path.suffix == ".safetensors" for path in weight_files(folder)[0])
        """False for pickles, which must be read to know what they hold."""
        self._tensors = indexed_tensors(folder, stored_tensors) if self.are_known else {}

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._tensors[name].shape
