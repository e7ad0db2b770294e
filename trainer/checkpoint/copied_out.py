"""A checkpoint's weights as Hugging Face files: shards and an index, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from trainer.checkpoint.container import DTYPE_BYTES, ContainerWriter
from trainer.checkpoint.held_weights import Weights
from trainer.config.hf_export import Expressed
from trainer.errors import CheckpointError
from trainer.files import write_atomically
from trainer.interchange.linked_names import sections_of
from trainer.interchange.weight_index import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9
"""Largest size of a file's tensors; a larger tensor has a file of its own."""
_METADATA = {"format": "pt"}
_HEADER_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_weights(tensors: Weights, said: Expressed, dtype: str, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write all weights of a checkpoint, durable but for the folder's list of names.

    Args:
        tensors: the weights of a checkpoint, every byte of it checked.
        said: its model in the words of a family.
        dtype: number format, as torch spells it.
        folder: an existing folder.
        shard_bytes: largest size of a file's tensors.

    Raises:
        CheckpointError: tensors are missing, or do not belong to the model.
        OSError: a file cannot be written.
    """
    links = said.family.links_of(said.values, list(said.model.tensors))
    unread = set(tensors.names()) - set(said.model.tensors)
    if unread:
        raise CheckpointError(f"CKPT must hold the model of its config.yaml, but also holds {min(unread)}")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, link in links.items():
        tensor = said.model.tensors[name]
        shapes |= dict(zip(link.theirs, link.shapes(tensor.shape, sections_of(tensor)), strict=True))
    header = _HEADER_DTYPES[dtype]
    files = _files(shapes, DTYPE_BYTES[header], shard_bytes)
    written = _theirs(tensors, said, getattr(torch, dtype))
    for file, names in files.items():
        held = {name: shapes[name] for name in names}
        writer = ContainerWriter(folder / file, held, _METADATA, header, is_hashed=False)
        for name in names:
            found, values = next(written)
            assert found == name, f"{name} is written before {found}"
            # NaN is both; and no mask as large as the tensor is made.
            if not all(bound.isfinite() for bound in values.aminmax()):
                raise CheckpointError(
                    f"{name} must hold numbers of {dtype}, but holds an infinity or a NaN; if the checkpoint does not, "
                    "choose another --dtype"
                )
            writer.append(values)
        writer.finish()
    if len(files) > 1:
        size = sum(DTYPE_BYTES[header] * math.prod(shape) for shape in shapes.values())
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_atomically(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n", "DST")


def _files(shapes: Mapping[str, tuple[int, ...]], item_bytes: int, shard_bytes: int) -> dict[str, list[str]]:
    """Return the names of the files, each with the tensors that it holds."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = item_bytes * math.prod(shape)
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{number:05d}-of-{len(shards):05d}.safetensors": names for number, names in enumerate(shards, 1)}


def _theirs(tensors: Weights, said: Expressed, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and values of each of their tensors, ours one after the other."""
    for name, link in said.family.links_of(said.values, list(said.model.tensors)).items():
        tensor = said.model.tensors[name]
        whole = tensors.read("weight", name)
        sections = sections_of(tensor)
        for index, (rows, shape) in enumerate(
            zip(link.rows(tensor.shape, sections), link.shapes(tensor.shape, sections), strict=True)
        ):
            values = torch.empty(shape, dtype=dtype)
            for mine, other in link.pairs(index, whole[rows], values):
                if other.ndim == 2 and other.stride(0) < other.stride(1):
                    # torch is quick at a transposed source, and not at a transposed target.
                    mine, other = mine.T, other.T
                other.copy_(mine)
            yield link.theirs[index], values
