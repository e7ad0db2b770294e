"""Tensors as safetensors, addressed by name and global shape: written by the ranks that own them, read by any layout.

Each rank writes one file of fragments: runs of consecutive elements of its tensor-parallel shard of a tensor. The
file's own header says where each belongs, so a folder of such files is a whole model, whatever layout wrote it. No
pickle.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer.checkpoint.container import ITEM_BYTES, read_header, read_values
from trainer.checkpoint.regions import Footprint, Region, footprint, regions, whole_footprint
from trainer.engine.face import Fragment
from trainer.errors import CheckpointError, ConfigError
from trainer.run_paths import TENSORS
from trainer.tensor_parallel.shard import ShardSpec, shard, with_padding

SPECS_KEY = "shard_specs"
FRAGMENTS_KEY = "fragments"
SUFFIX = ".safetensors"
BLOCK = 1 << 20
"""Elements that are read or written at once: the memory needed besides the tensor itself."""
_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)")


Place = list[str | int]
"""A file's entry for a fragment: kind, name of the tensor, tensor-parallel rank and size, first element."""


def rank_file(rank: int) -> str:
    """Return the name of a rank's file of tensors, relative to its checkpoint."""
    return f"{TENSORS}/rank_{rank:05d}{SUFFIX}"


def address(kind: str, spec: ShardSpec, tp_rank: int, size: int, start: int) -> tuple[str, Place]:
    """Return the key of a fragment in its file, and its place."""
    return f"{kind}/{spec.name}/{tp_rank}/{start}", [kind, spec.name, tp_rank, size, start]


def file_metadata(specs: Iterable[ShardSpec], places: Mapping[str, Place]) -> dict[str, str]:
    """Return the metadata of a file's header: how its tensors are sharded, and key -> place."""
    cuts = {spec.name: asdict(spec) for spec in specs}
    return {SPECS_KEY: json.dumps(cuts), FRAGMENTS_KEY: json.dumps(dict(places))}


def write_fragments(path: Path, fragments: Iterable[Fragment]) -> bool:
    """Write fragments as one durable file; return False, and write nothing, if there are none. Local.

    Raises:
        OSError: the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    specs: dict[str, ShardSpec] = {}
    places: dict[str, Place] = {}
    for fragment in fragments:
        key, place = address(
            fragment.kind, fragment.spec, fragment.tp_rank, fragment.tensor_parallel_size, fragment.start
        )
        tensors[key], places[key] = fragment.values, place
        specs[fragment.spec.name] = fragment.spec
    if not tensors:
        return False
    try:
        save_file(tensors, path, metadata=file_metadata(specs.values(), places))
    except SafetensorError as error:
        # The library hides the operating system's message in its text.
        code = _OS_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    # The library makes files that only their owner may read; ours follow the umask, as their folder does.
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return True


@dataclass(frozen=True)
class _Place:
    """Place of a fragment in a file, and in its tensor."""

    path: Path
    first_byte: int
    tp_rank: int
    tensor_parallel_size: int
    start: int
    numel: int


class TensorFolder:
    """Reads tensors out of files that ranks wrote with `write_fragments`. Reads headers first, data on demand.

    Args:
        folder: the checkpoint, as messages name it.
        files: names of the files to read, relative to the folder; names without our suffix are ignored.

    Raises:
        CheckpointError: there is no file, or one cannot be read.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._folder = folder
        self._specs: dict[str, ShardSpec] = {}
        self._places: dict[tuple[str, str], list[_Place]] = {}
        for name in sorted(files):
            if name.endswith(SUFFIX):
                self._read_header(folder / name)
        if not self._places:
            raise CheckpointError(f"{folder} must hold tensors (*{SUFFIX}), but holds none")

    def _read_header(self, path: Path) -> None:
        try:
            metadata, tensors = read_header(path)
            specs, places = json.loads(metadata[SPECS_KEY]), json.loads(metadata[FRAGMENTS_KEY])
            for name, raw in specs.items():
                spec = _spec(raw)
                if self._specs.setdefault(name, spec) != spec:
                    raise ValueError(f"{name} is sharded as {spec} here, but as {self._specs[name]} elsewhere")
            for key, (first_byte, numel) in tensors.items():
                kind, name, tp_rank, size, start = places[key]
                if name not in self._specs:
                    raise ValueError(f"{key} is of a tensor whose shape is not told")
                place = _Place(path, first_byte, _count(tp_rank), _count(size, 1), _count(start), numel)
                self._places.setdefault((str(kind), name), []).append(place)
        except KeyError as error:
            raise CheckpointError(f"{path} must hold fragments, but its metadata lack {error}") from error
        except (SafetensorError, OSError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} must hold fragments, but cannot be read: {error}") from error

    def kinds(self) -> list[str]:
        """Return the kinds of tensors here: weight and the names of moments."""
        return sorted({kind for kind, _ in self._places})

    def names(self, kind: str = "weight") -> list[str]:
        """Return the names of the tensors of a kind."""
        return sorted(name for found, name in self._places if found == kind)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the global shape of a tensor, without vocabulary padding."""
        return self._specs[name].unpadded_shape

    def spec(self, name: str) -> ShardSpec:
        """Return how a tensor is sharded here."""
        return self._specs[name]

    def read(self, kind: str, name: str) -> torch.Tensor:
        """Return a whole tensor without vocabulary padding, fp32 on CPU. Takes its memory and that of a block.

        Raises:
            CheckpointError: it is not there, or not all of it.
        """
        places = self._whole(kind, name)
        spec = self._specs[name]
        whole = torch.empty(spec.unpadded_shape, dtype=torch.float32)
        self._fill(whole, whole_footprint(spec), places, spec)
        return whole

    def read_shard(self, kind: str, spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
        """Return rank `rank`'s shard of a tensor as `spec` shards it for `size` ranks, padding included.

        Reads only blocks that hold a part of it: from a checkpoint that was sharded alike, only that shard.

        Raises:
            CheckpointError: it is not there, not all of it, or has another shape, as in another model.
        """
        places = self._whole(kind, spec.name)
        saved = self._specs[spec.name]
        if saved.unpadded_shape != spec.unpadded_shape:
            raise CheckpointError(
                f"{spec.name} must have shape {spec.unpadded_shape} for this model, but has {saved.unpadded_shape} in "
                f"{self._folder}; give model.* the values of the run that saved it"
            )
        if saved.dim != spec.dim:
            return shard(with_padding(self.read(kind, spec.name), spec), spec, rank, size)
        found = torch.zeros(spec.local_shape(size), dtype=torch.float32)
        self._fill(found, footprint(spec, rank, size), places, saved)
        return found

    def _whole(self, kind: str, name: str) -> list[_Place]:
        """Return the places of a tensor; every element must be there exactly once. Reads no data, takes no memory."""
        if (kind, name) not in self._places and [held for held, of in self._places if of == name] == ["weight"]:
            raise CheckpointError(
                f"{self._folder} must hold {kind} of {name}, but holds only its weight: it was not trained; freeze it "
                "again, or begin a new run with checkpoint.init_from"
            )
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
                raise ValueError(f"{name} is sharded for different numbers of ranks: {sorted(sizes)}")
            numel = math.prod(spec.local_shape(size))
            for rank in range(size) if spec.dim is not None else range(1):
                _check_complete([place for place in places if place.tp_rank == rank], numel, rank)
        except (ValueError, ConfigError) as error:
            raise CheckpointError(f"{self._folder} must hold all of {kind} of {name}, but: {error}") from error
        return [place for place in places if spec.dim is not None or place.tp_rank == 0]

    def _fill(self, target: torch.Tensor, wanted: Footprint, places: list[_Place], saved: ShardSpec) -> None:
        """Copy the `wanted` part of `saved` to its place in `target`."""
        matrix = target.view(wanted.rows, wanted.width)
        for place in places:
            source = footprint(saved, place.tp_rank, place.tensor_parallel_size)
            for first in range(0, place.numel, BLOCK):
                count = min(BLOCK, place.numel - first)
                shared = list(regions(place.start + first, count, source, wanted))
                if not shared:
                    continue
                try:
                    block = read_values(place.path, place.first_byte + ITEM_BYTES * first, count)
                except OSError as error:
                    raise CheckpointError(f"{place.path} must be readable, but: {error}") from error
                for region in shared:
                    _in_other(matrix, region).copy_(_in_run(block, region))


def cut_run(whole: torch.Tensor, spec: ShardSpec, rank: int, size: int, start: int, numel: int) -> torch.Tensor:
    """Return `numel` elements of a rank's flattened shard from `start` on, vocabulary padding zero.

    Args:
        whole: the tensor, of shape `spec.unpadded_shape`.
        spec: the tensor's sharding.
        rank: tensor-parallel rank.
        size: number of such ranks.
        start: first element in the flattened shard.
        numel: number of elements.
    """
    there = whole_footprint(spec)
    matrix = whole.view(there.rows, there.width)
    run = torch.zeros(numel, dtype=torch.float32)
    for region in regions(start, numel, footprint(spec, rank, size), there):
        _in_run(run, region).copy_(_in_other(matrix, region))
    return run


def _in_run(run: torch.Tensor, region: Region) -> torch.Tensor:
    band = run.narrow(0, region.offset, region.rows * region.stride).view(region.rows, region.stride)
    return band.narrow(1, region.column, region.width)


def _in_other(matrix: torch.Tensor, region: Region) -> torch.Tensor:
    return matrix.narrow(0, region.other_row, region.rows).narrow(1, region.other_column, region.width)


def _check_complete(places: list[_Place], numel: int, rank: int) -> None:
    filled = 0
    for place in sorted(places, key=lambda place: place.start):
        if place.start != filled:
            raise ValueError(_gap(min(place.start, filled), rank))
        filled += place.numel
    if filled != numel:
        raise ValueError(_gap(min(filled, numel), rank))


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
        whole_sections=_count(raw.get("whole_sections", 0)),
    )
    if spec.dim is not None and spec.padding > spec.global_shape[spec.dim]:
        raise ValueError(f"a shard spec must hold less padding than rows, but is {raw}")
    if spec.whole_sections and spec.whole_sections >= len(spec.sections):
        raise ValueError(f"a shard spec must have fewer whole sections than sections, but is {raw}")
    return spec
