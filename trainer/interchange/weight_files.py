"""The tensors of a Hugging Face folder, whatever files they are in; read one at a time, nothing is kept.

safetensors are read without mapping a file: what was read would stay resident. Older pickles are read only with
torch's unpickler for weights, which runs no code.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from trainer.errors import CheckpointError, first_line
from trainer.interchange.weight_headers import StoredTensor, indexed_tensors, stored_tensors

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Number formats of weights; buffers in others are listed, and fail when they are read."""


class WeightFiles:
    """The tensors of a folder by their names.

    Args:
        folder: the folder.

    Raises:
        CheckpointError: there are no weights, a file is missing or damaged, or the index names what is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pickles: dict[Path, Mapping[str, torch.Tensor]] = {}
        self._tensors = indexed_tensors(folder, self._listed)

    @property
    def are_safetensors(self) -> bool:
        """True if single tensors can be read; False for pickles."""
        return not self._pickles

    def _listed(self, path: Path) -> Iterator[tuple[str, StoredTensor]]:
        if path.suffix == ".safetensors":
            yield from stored_tensors(path)
            return
        for name, tensor in self._pickle(path).items():
            yield name, StoredTensor(path, tuple(tensor.shape), str(tensor.dtype))

    def _pickle(self, path: Path) -> Mapping[str, torch.Tensor]:
        if path not in self._pickles:
            found = _unpickled(path)
            if not isinstance(found, Mapping) or not all(isinstance(one, torch.Tensor) for one in found.values()):
                raise CheckpointError(f"{path} must hold tensors by their names, but does not")
            self._pickles[path] = found
        return self._pickles[path]

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._tensors[name].shape

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor as it is stored, on CPU.

        Raises:
            CheckpointError: it cannot be read, or is no tensor of real numbers.
        """
        stored = self._tensors[name]
        if stored.path.suffix == ".safetensors":
            self._check_format(name, stored.dtype in _DTYPES)
            return _values(stored)
        found = self._pickle(stored.path)[name]
        if not found.is_floating_point():
            raise CheckpointError(f"{name} must be of real numbers, but is {found.dtype} in {stored.path}")
        self._check_format(name, found.dtype in _DTYPES.values())
        return found

    def _check_format(self, name: str, is_known: bool) -> None:
        stored = self._tensors[name]
        if not is_known:
            raise CheckpointError(
                f"{name} must be of {', '.join(_DTYPES)}, but is {stored.dtype} in {stored.path}: quantised weights "
                "cannot be read"
            )


def _unpickled(path: Path) -> object:
    """Return what a pickle holds, if it is tensors: their numbers stay in the file until they are read.

    Files from before torch 1.6 cannot be mapped, and are read whole.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # The library's own words tell how to run what the file says.
        raise CheckpointError(
            f"{path} must hold tensors and nothing else, but is damaged or holds other objects, whose code is never run"
        ) from error
    # The library raises whatever its parts raise.
    except Exception as error:
        raise CheckpointError(f"{path} must hold tensors and nothing else, but: {first_line(error)}") from error


def _values(stored: StoredTensor) -> torch.Tensor:
    values = torch.empty(math.prod(stored.shape), dtype=_DTYPES[stored.dtype])
    rest = values.view(torch.uint8).numpy().data
    try:
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.first_byte)
            while rest:
                found = file.readinto(rest)
                if not found:
                    raise OSError("the file is shorter than its header says")
                rest = rest[found:]
    except OSError as error:
        raise CheckpointError(f"{stored.path} must be readable, but: {error}") from error
    return values.view(stored.shape)
