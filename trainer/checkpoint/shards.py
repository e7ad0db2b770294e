"""Weights as safetensors, addressed by global name: written by the ranks that own them, read by any layout."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainer.errors import CheckpointError, ConfigError
from trainer.tensor_parallel.shard import ShardSpec, unshard, without_padding

SPECS_KEY = "shard_specs"
_FILE = re.compile(r"stage([0-9]+)_tp([0-9]+)\.safetensors")
_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)")


def write_weights(
    folder: Path, stage: int, tp_rank: int, tensors: Mapping[str, torch.Tensor], specs: Mapping[str, ShardSpec]
) -> None:
    """Write one rank's shards as `weights/stage<s>_tp<t>.safetensors`. Local.

    Raises:
        OSError: the file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {SPECS_KEY: json.dumps({name: asdict(specs[name]) for name in tensors})}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path = folder / f"stage{stage}_tp{tp_rank}.safetensors"
    try:
        save_file(contiguous, path, metadata=metadata)
    except SafetensorError as error:
        # The library hides what the operating system said in its text.
        code = _OS_ERROR.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


@dataclass
class _Shards:
    """One tensor's parts, as found."""

    spec: ShardSpec
    by_rank: dict[int, torch.Tensor] = field(default_factory=dict)

    def tensor_parallel_size(self) -> int:
        """Return into how many parts the spec and the shape of a part say that the tensor was cut."""
        if self.spec.dim is None:
            return 1
        part = next(iter(self.by_rank.values()))
        length = part.shape[self.spec.dim] if part.ndim == len(self.spec.global_shape) else 0
        return self.spec.global_shape[self.spec.dim] // length if length else 1


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return every full tensor by global name, put together from all shards, without vocabulary padding. fp32, on CPU.

    Raises:
        CheckpointError: a shard is missing or cannot be read.
    """
    found: dict[str, _Shards] = {}
    for path in sorted(folder.glob("stage*_tp*.safetensors")):
        name = _FILE.fullmatch(path.name)
        if name is not None:
            _read_file(path, int(name[2]), found)
    if not found:
        raise CheckpointError(f"{folder} must hold weight shards (stage*_tp*.safetensors), but holds none")
    return {name: _whole(folder, shards) for name, shards in found.items()}


def _read_file(path: Path, tp_rank: int, found: dict[str, _Shards]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            specs = json.loads((file.metadata() or {})[SPECS_KEY])
            for name in file.keys():  # noqa: SIM118 - not a dict
                spec = _spec(specs[name])
                shards = found.setdefault(name, _Shards(spec))
                if shards.spec != spec:
                    raise ValueError(f"{name} is cut as {spec} here, but as {shards.spec} elsewhere")
                shards.by_rank[tp_rank] = file.get_tensor(name)
    except KeyError as error:
        raise CheckpointError(f"{path} must hold weight shards, but its metadata lack {error}") from error
    except (SafetensorError, OSError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{path} must hold weight shards, but cannot be read: {error}") from error


def _whole(folder: Path, shards: _Shards) -> torch.Tensor:
    spec = shards.spec
    size = shards.tensor_parallel_size()
    ranks = range(size) if spec.dim is not None else sorted(shards.by_rank)[:1]
    missing = [rank for rank in ranks if rank not in shards.by_rank]
    if missing:
        raise CheckpointError(
            f"{folder} must hold {spec.name} of {size} tensor-parallel ranks, but lacks ranks {missing}"
        )
    try:
        full = unshard([shards.by_rank[rank] for rank in ranks], spec)
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder} must hold weights of one model, but {error}") from error
    return without_padding(full, spec)


def _spec(raw: Mapping[str, object]) -> ShardSpec:
    shape, sections, dim, padding = raw["global_shape"], raw["sections"], raw["dim"], raw["padding"]
    if not (isinstance(shape, list) and isinstance(sections, list) and isinstance(padding, int)):
        raise ValueError(f"a shard spec must hold lists of sizes, but is {raw}")
    return ShardSpec(str(raw["name"]), tuple(shape), dim if isinstance(dim, int) else None, tuple(sections), padding)
