"""Weights as safetensors, addressed by global name: written by the ranks that own them, read by any layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainer.errors import CheckpointError
from trainer.tensor_parallel.shard import ShardSpec, unshard, without_padding

SPECS_KEY = "shard_specs"


def write_weights(
    folder: Path, stage: int, tp_rank: int, tensors: Mapping[str, torch.Tensor], specs: Mapping[str, ShardSpec]
) -> None:
    """Write one rank's shards as `weights/stage<s>_tp<t>.safetensors`. Local."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {SPECS_KEY: json.dumps({name: asdict(specs[name]) for name in tensors})}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / f"stage{stage}_tp{tp_rank}.safetensors", metadata=metadata)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return every full tensor by global name, put together from all shards, without vocabulary padding. fp32, on CPU.

    Raises:
        CheckpointError: a shard is missing or cannot be read.
    """
    shards: dict[str, dict[int, torch.Tensor]] = {}
    specs: dict[str, ShardSpec] = {}
    paths = sorted(folder.glob("stage*_tp*.safetensors"))
    for path in paths:
        tp_rank = int(path.stem.split("_tp")[1])
        try:
            with safe_open(path, framework="pt") as file:
                found = json.loads(file.metadata()[SPECS_KEY])
                for name in file.keys():  # noqa: SIM118 - not a dict
                    specs[name] = _spec(found[name])
                    shards.setdefault(name, {})[tp_rank] = file.get_tensor(name)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path} must hold weight shards, but cannot be read: {error}") from error
    if not shards:
        raise CheckpointError(f"{folder} must hold weight shards (stage*_tp*.safetensors), but holds none")
    tensor_parallel_size = 1 + max(int(path.stem.split("_tp")[1]) for path in paths)
    full: dict[str, torch.Tensor] = {}
    for name, by_rank in shards.items():
        missing = sorted(set(range(tensor_parallel_size)) - set(by_rank))
        if missing:
            raise CheckpointError(f"{folder} must hold {name} of every tensor-parallel rank, but lacks ranks {missing}")
        parts = [by_rank[rank] for rank in range(tensor_parallel_size)]
        full[name] = without_padding(unshard(parts, specs[name]), specs[name])
    return full


def _spec(raw: Mapping[str, object]) -> ShardSpec:
    shape, sections, dim, padding = raw["global_shape"], raw["sections"], raw["dim"], raw["padding"]
    if not (isinstance(shape, list) and isinstance(sections, list) and isinstance(padding, int)):
        raise ValueError(f"a shard spec must hold lists of sizes, but is {raw}")
    return ShardSpec(str(raw["name"]), tuple(shape), dim if isinstance(dim, int) else None, tuple(sections), padding)
