"""Tensors as safetensors, addressed by name and global shape: written by the ranks that own them, read by any layout.

Each rank writes one file of fragments: runs of consecutive elements of its tensor-parallel shard of a tensor. The
file's own header says where each belongs, so a folder of such files is a whole model whoever wrote it. No pickle.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainer.engine.face import Fragment
from trainer.errors import CheckpointError, ConfigError
from trainer.tensor_parallel.shard import ShardSpec, shard, unshard, with_padding, without_padding

SPECS_KEY = "shard_specs"
FRAGMENTS_KEY = "fragments"
SUFFIX = ".safetensors"
_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)")


def write_fragments(path: Path, fragments: Iterable[Fragment]) -> bool:
    """Write fragments as one durable file; return False, and write nothing, if there are none. Local.

    Raises:
        OSError: the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    specs: dict[str, object] = {}
    places: dict[str, object] = {}
    for fragment in fragments:
        key = f"{fragment.kind}/{fragment.spec.name}/{fragment.tp_rank}/{fragment.start}"
        tensors[key] = fragment.values
        specs[fragment.spec.name] = asdict(fragment.spec)
        places[key] = [
            fragment.kind,
            fragment.spec.name,
            fragment.tp_rank,
            fragment.tensor_parallel_size,
            fragment.start,
        ]
    if not tensors:
        return False
    try:
        save_file(tensors, path, metadata={SPECS_KEY: json.dumps(specs), FRAGMENTS_KEY: json.dumps(places)})
    except SafetensorError as error:
        # The library hides what the operating system said in its text.
        code = _OS_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return True


@dataclass(frozen=True)
class _Place:
    """Where a fragment is, and what it is a part of."""

    path: Path
    key: str
    tp_rank: int
    tensor_parallel_size: int
    start: int
    numel: int


class TensorFolder:
    """Reads tensors out of files that ranks wrote with `write_fragments`. Opens headers first, data on demand.

    Args:
        folder: named in messages.
        files: those to read, relative to it; only names with our suffix are. Whatever else lies there is not opened.

    Raises:
        CheckpointError: there is no file, or one cannot be read.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._folder = folder
        self._files: dict[Path, Any] = {}
        self._specs: dict[str, ShardSpec] = {}
        self._places: dict[tuple[str, str], list[_Place]] = {}
        for name in sorted(files):
            if name.endswith(SUFFIX):
                self._read_header(folder / name)
        if not self._places:
            raise CheckpointError(f"{folder} must hold tensors (*{SUFFIX}), but holds none")

    def _read_header(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            self._files[path] = file
            metadata = file.metadata() or {}
            specs, places = json.loads(metadata[SPECS_KEY]), json.loads(metadata[FRAGMENTS_KEY])
            for name, raw in specs.items():
                spec = _spec(raw)
                if self._specs.setdefault(name, spec) != spec:
                    raise ValueError(f"{name} is cut as {spec} here, but as {self._specs[name]} elsewhere")
            for key in file.keys():  # noqa: SIM118 - not a dict
                kind, name, tp_rank, size, start = places[key]
                if name not in self._specs:
                    raise ValueError(f"{key} is of a tensor whose shape is not told")
                numel = math.prod(file.get_slice(key).get_shape())
                place = _Place(path, key, _count(tp_rank), _count(size, 1), _count(start), numel)
                self._places.setdefault((str(kind), name), []).append(place)
        except KeyError as error:
            raise CheckpointError(f"{path} must hold fragments, but its metadata lack {error}") from error
        except (SafetensorError, OSError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} must hold fragments, but cannot be read: {error}") from error

    def names(self, kind: str = "weight") -> list[str]:
        """Return the names of the tensors of a kind."""
        return sorted(name for found, name in self._places if found == kind)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the global shape of a tensor, without vocabulary padding."""
        return self._specs[name].unpadded_shape

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor without vocabulary padding, fp32 on CPU.

        Raises:
            CheckpointError: it is not there, or not all of it.
        """
        if (kind, name) not in self._places:
            raise CheckpointError(
                f"{self._folder} must hold {kind} of {name}, but does not; give model.* the values of the run that "
                "saved it"
            )
        places, spec = self._places[kind, name], self._specs[name]
        sizes = {place.tensor_parallel_size for place in places}
        size = min(sizes)
        try:
            if len(sizes) != 1 or any(place.tp_rank >= size for place in places):
                raise ValueError(f"{name} is cut for different numbers of ranks: {sorted(sizes)}")
            ranks = range(size) if spec.dim is not None else range(1)
            parts = [self._shard([p for p in places if p.tp_rank == rank], spec, rank, size) for rank in ranks]
            return without_padding(unshard(parts, spec) if spec.dim is not None else parts[0], spec)
        except (ValueError, ConfigError, SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._folder} must hold all of {kind} of {name}, but: {error}") from error

    def _shard(self, places: list[_Place], spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
        """Put one tensor-parallel rank's shard together; every element must be there exactly once."""
        shape = spec.local_shape(size)
        ordered = sorted(places, key=lambda place: place.start)
        filled, numel = 0, math.prod(shape)
        # Before memory is taken: a shape that is not backed by as many bytes must not take any.
        for place in ordered:
            if place.start != filled:
                raise ValueError(_gap(min(place.start, filled), rank))
            filled += place.numel
        if filled != numel:
            raise ValueError(_gap(min(filled, numel), rank))
        whole = torch.empty(shape, dtype=torch.float32)
        flat = whole.view(-1)
        for place in ordered:
            values = self._files[place.path].get_tensor(place.key).view(-1)
            flat[place.start : place.start + place.numel] = values
        return whole

    def read_shard(self, kind: str, spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
        """Return rank `rank`'s shard of a tensor as `spec` cuts it for `size` ranks, padding included.

        Raises:
            CheckpointError: it is not there, or is of another shape: another model.
        """
        full = self.read(kind, spec.name)
        if tuple(full.shape) != spec.unpadded_shape:
            raise CheckpointError(
                f"{spec.name} must have shape {spec.unpadded_shape} for this model, but has {tuple(full.shape)} in "
                f"{self._folder}; give model.* the values of the run that saved it"
            )
        return shard(with_padding(full, spec), spec, rank, size)


def _gap(element: int, rank: int) -> str:
    return f"elements from {element} on of tensor-parallel rank {rank} are missing or there twice"


def _count(value: object, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"a size, rank or offset must be a whole number of at least {least}, but is {value!r}")
    return value


def _spec(raw: Mapping[str, object]) -> ShardSpec:
    shape, sections, dim = raw["global_shape"], raw["sections"], raw["dim"]
    if not (isinstance(shape, list) and isinstance(sections, list)):
        raise ValueError(f"a shard spec must hold lists of sizes, but is {raw}")
    spec = ShardSpec(
        name=str(raw["name"]),
        global_shape=tuple(map(_count, shape)),
        dim=None if dim is None else _count(dim),
        sections=tuple(map(_count, sections)),
        padding=_count(raw["padding"]),
    )
    if spec.dim is not None and spec.padding > spec.global_shape[spec.dim]:
        raise ValueError(f"a shard spec must hold less padding than rows, but is {raw}")
    return spec
