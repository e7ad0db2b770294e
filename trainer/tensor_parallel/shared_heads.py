"""Rows of key/value heads of which there are fewer than tensor-parallel ranks: every rank holds them whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.spec.parts import Linear
from trainer.spec.tensors import Cut
from trainer.tensor_parallel.mappings import complete_gradient
from trainer.topology.groups import Group


@dataclass(frozen=True)
class SharedHeads:
    """Rows of a parameter that every rank holds whole, of which this rank uses those of one head of each section."""

    sections: tuple[int, ...]
    """Numbers of rows, section after section."""
    starts: tuple[int, ...]
    """First of this rank's rows in each section."""
    widths: tuple[int, ...]


def shared_heads(spec: Linear, group: Group) -> SharedHeads:
    """Return what a rank uses of the sections that have fewer heads than there are ranks."""
    count = Cut(0, spec.sections, heads=spec.heads).whole_sections(group.size)
    first = len(spec.sections) - count
    sections, heads = spec.sections[first:], spec.heads[first:]
    widths = tuple(section // head for section, head in zip(sections, heads, strict=False))
    starts = tuple(group.rank * head // group.size * width for head, width in zip(heads, widths, strict=False))
    return SharedHeads(sections, starts, widths)


def local_widths(spec: Linear, group: Group) -> tuple[int, ...]:
    """Return how many of a column-parallel layer's outputs a rank computes of each section."""
    shared = shared_heads(spec, group).widths
    return tuple(section // group.size for section in spec.sections[: len(spec.sections) - len(shared)]) + shared


def with_shared(own: torch.Tensor, shared: torch.Tensor | None, heads: SharedHeads, group: Group) -> torch.Tensor:
    """Return this rank's rows of a parameter: its own, and those that it uses of the shared ones.

    Backward all-reduces the gradient of the shared rows over the group.
    """
    if shared is None:
        return own
    blocks = torch.split(complete_gradient(shared, group), list(heads.sections))
    used = zip(blocks, heads.starts, heads.widths, strict=True)
    return torch.cat((own, *(block.narrow(0, start, width) for block, start, width in used)))
