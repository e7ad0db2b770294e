"""The sharding of a full tensor over the tensor-parallel ranks. Travels with each parameter; checkpoints read it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from trainer.errors import ConfigError
from trainer.spec.tensors import TensorSpec

_ATTRIBUTE = "trident_shard_spec"
_PART = "trident_part"


@dataclass(frozen=True)
class ShardSpec:
    """Place of one parameter in the whole model.

    A fused tensor is several blocks along `dim`; each block is sharded evenly, so that rank r holds part r of every
    block, in block order.
    """

    name: str
    """Global name, the same in every layout."""
    global_shape: tuple[int, ...]
    """Shape over all tensor-parallel ranks, vocabulary padding included."""
    dim: int | None = None
    """Dimension that is sharded; None: every rank holds the whole tensor."""
    sections: tuple[int, ...] = ()
    """Global sizes of the blocks along `dim`; they add up to `global_shape[dim]`. Empty for `dim=None`."""
    padding: int = 0
    """Trailing entries along `dim` that exist only to make the vocabulary divisible; always zero."""
    whole_sections: int = 0
    """Number of the last blocks that every rank holds whole: keys and values with fewer heads than ranks."""

    def __post_init__(self) -> None:
        """Check that the sections fill the dimension."""
        found = 0 if self.dim is None else self.global_shape[self.dim]
        if sum(self.sections) != found:
            raise ValueError(f"sections of {self.name} must add up to {found}, but are {self.sections}")

    @property
    def unpadded_shape(self) -> tuple[int, ...]:
        """Shape without the vocabulary padding, which is the same in every layout."""
        if self.dim is None:
            return self.global_shape
        shape = list(self.global_shape)
        shape[self.dim] -= self.padding
        return tuple(shape)

    def local_shape(self, size: int) -> tuple[int, ...]:
        """Return the shape on one of `size` ranks."""
        if self.dim is None:
            return self.global_shape
        shape = list(self.global_shape)
        shape[self.dim] = sum(local_sections(self, size))
        return tuple(shape)


@dataclass(frozen=True)
class Part:
    """Place of a parameter in a rank's shard of a tensor: all of it, or the blocks that it shares with other ranks."""

    first: int
    """First element in the flattened shard."""
    numel: int


def shard_spec_of(tensor: TensorSpec, vocab_unit: int, size: int) -> ShardSpec:
    """Return the place of a tensor of a model in a layout.

    Args:
        tensor: the model's entry.
        vocab_unit: number of which the rows of the vocabulary are a multiple.
        size: number of tensor-parallel ranks.
    """
    cut = tensor.cut
    whole = 0 if cut is None else cut.whole_sections(size)
    if cut is None or whole == len(cut.sections):
        return ShardSpec(tensor.name, tensor.shape)
    padding = tensor.padding(vocab_unit)
    shape = list(tensor.shape)
    shape[cut.dim] += padding
    sections = (*cut.sections[:-1], cut.sections[-1] + padding)
    return ShardSpec(tensor.name, tuple(shape), cut.dim, sections, padding, whole)


def local_sections(spec: ShardSpec, size: int) -> tuple[int, ...]:
    """Return the sizes of the blocks on one of `size` ranks.

    Raises:
        ConfigError: a block cannot be sharded into `size` equal parts.
    """
    cut = len(spec.sections) - spec.whole_sections
    for section in spec.sections[:cut]:
        if section % size:
            raise ConfigError(
                f"{spec.name} has a block of {section} rows or columns, which must be divisible by "
                f"layout.tensor_parallel_size ({size})"
            )
    return tuple(section // size for section in spec.sections[:cut]) + spec.sections[cut:]


def block_start(spec: ShardSpec, index: int, width: int, rank: int) -> int:
    """Return where a rank's `width` entries begin in block `index`: at its start, if every rank holds it whole."""
    return 0 if index >= len(spec.sections) - spec.whole_sections else rank * width


def parts_of(spec: ShardSpec, size: int) -> tuple[Part, ...]:
    """Return the parts of a shard: with blocks that every rank holds whole, what is cut and what is not.

    A parameter that is a part holds rows of a tensor that is sharded along its first dimension.
    """
    numel = math.prod(spec.local_shape(size))
    if spec.whole_sections == 0:
        return (Part(0, numel),)
    widths = local_sections(spec, size)
    cut = sum(widths[: len(widths) - spec.whole_sections]) * (numel // sum(widths))
    return Part(0, cut), Part(cut, numel - cut)


def shared_part(own: torch.Tensor, spec: ShardSpec, size: int) -> torch.Tensor | None:
    """Return the part of a rank's shard that is the same on all `size` ranks; None if every element is a rank's own."""
    if spec.dim is None:
        return own
    if spec.whole_sections == 0:
        return None
    shared = sum(local_sections(spec, size)[-spec.whole_sections :])
    return own.narrow(spec.dim, own.shape[spec.dim] - shared, shared)


def shard(full: torch.Tensor, spec: ShardSpec, rank: int, size: int) -> torch.Tensor:
    """Return rank `rank`'s part of `full` (shape `spec.global_shape`) as a tensor of its own storage.

    Raises:
        ValueError: `full` has another shape.
        ConfigError: a block cannot be sharded into `size` equal parts.
    """
    if tuple(full.shape) != spec.global_shape:
        raise ValueError(f"{spec.name} must have shape {spec.global_shape}, but has {tuple(full.shape)}")
    if spec.dim is None:
        return full.clone()
    parts = local_sections(spec, size)
    blocks = torch.split(full, list(spec.sections), dim=spec.dim)
    mine = [
        block.narrow(spec.dim, block_start(spec, index, part, rank), part)
        for index, (block, part) in enumerate(zip(blocks, parts, strict=True))
    ]
    return torch.cat(mine, dim=spec.dim)


def unshard(parts: Sequence[torch.Tensor], spec: ShardSpec) -> torch.Tensor:
    """Return the full tensor from the parts of all ranks, in rank order. The inverse of `shard`.

    Raises:
        ValueError: a part does not have the shape that `spec` says.
    """
    size = len(parts)
    expected = spec.local_shape(size)
    for rank, part in enumerate(parts):
        if tuple(part.shape) != expected:
            raise ValueError(
                f"{spec.name} on tensor-parallel rank {rank} of {size} must have shape {expected}, "
                f"but has {tuple(part.shape)}"
            )
    if spec.dim is None:
        return parts[0].clone()
    widths = local_sections(spec, size)
    cut = [torch.split(part, list(widths), dim=spec.dim) for part in parts]
    first_whole = len(widths) - spec.whole_sections
    blocks = [own[index] for index in range(first_whole) for own in cut]
    return torch.cat([*blocks, *cut[0][first_whole:]], dim=spec.dim)


def without_padding(full: torch.Tensor, spec: ShardSpec) -> torch.Tensor:
    """Return `full` without the vocabulary padding, which is the same in every layout."""
    if spec.dim is None or spec.padding == 0:
        return full
    return full.narrow(spec.dim, 0, full.shape[spec.dim] - spec.padding)


def with_padding(full: torch.Tensor, spec: ShardSpec) -> torch.Tensor:
    """Return `full` with the vocabulary padding that `spec` asks for: zeros. The inverse of `without_padding`."""
    if spec.dim is None or spec.padding == 0:
        return full
    shape = list(full.shape)
    shape[spec.dim] = spec.padding
    return torch.cat([full, full.new_zeros(shape)], dim=spec.dim)


def set_shard_spec(parameter: torch.nn.Parameter, spec: ShardSpec, part: Part | None = None) -> None:
    """Attach `spec`. Sharded parameters also get the marks by which DeepSpeed counts each norm contribution once.

    Args:
        parameter: a whole shard, or a part of one.
        spec: the sharding of the tensor.
        part: the part; None: the whole shard.
    """
    setattr(parameter, _ATTRIBUTE, spec)
    setattr(parameter, _PART, part)
    if spec.dim is not None and (part is None or part.first == 0):
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
        parameter.model_parallel = True  # type: ignore[attr-defined]


def shard_spec(parameter: torch.nn.Parameter) -> ShardSpec:
    """Return the spec attached to `parameter`.

    Raises:
        ValueError: it has none, so it was not made by `trainer.tensor_parallel.init`.
    """
    spec = getattr(parameter, _ATTRIBUTE, None)
    if not isinstance(spec, ShardSpec):
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} must have a shard spec, but has none")
    return spec


def first_element(parameter: torch.nn.Parameter) -> int:
    """Return where a parameter begins in the rank's flattened shard of its tensor: 0, unless it is a later part."""
    part: Part | None = getattr(parameter, _PART, None)
    return 0 if part is None else part.first


def joined_shards(parameters: Iterable[tuple[torch.nn.Parameter, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return a rank's shard of each tensor by name, from its parameters, a later part behind the first, with values."""
    found: dict[str, torch.Tensor] = {}
    for parameter, values in parameters:
        spec = shard_spec(parameter)
        if first_element(parameter):
            values = torch.cat((found[spec.name], values))
        found[spec.name] = values
    return found
