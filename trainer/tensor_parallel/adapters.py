"""Low-rank adapters beside linear layers whose weight is sharded over the tensor-parallel group: y += scale B A x.

Source: LoRA, arXiv 2106.09685. Of a column-parallel layer A is whole and B is sharded like the weight's rows; of a
row-parallel one A is sharded like the weight's columns and B is whole. So an adapter never communicates more than
`[S, B, rank]` of activations, and the gradient of the matrix that every rank holds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trainer.spec.parts import Adapter, Linear
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.mappings import complete_gradient, enter_tensor_parallel
from trainer.tensor_parallel.shared_heads import local_widths, shared_heads, with_shared


def column_adapters(name: str, spec: Linear, context: TensorContext) -> ColumnAdapters | None:
    """Return the adapters of a column-parallel layer; None if it has none."""
    return ColumnAdapters(name, spec, context) if spec.adapters else None


def row_adapters(name: str, spec: Linear, context: TensorContext) -> RowAdapter | None:
    """Return the adapter of a row-parallel layer, which has one output; None if it has none."""
    return RowAdapter(name, spec, spec.adapters[0], context) if spec.adapters else None


class ColumnAdapters(nn.Module):
    """The sums of all adapters of a column-parallel layer: its input -> `[S, B, out/tp]`, 0 where there is none.

    Args:
        name: global name of the layer.
        spec: the layer.
        context: as the layer's.
    """

    def __init__(self, name: str, spec: Linear, context: TensorContext) -> None:
        super().__init__()
        widths = local_widths(spec, context.tensor)
        ends = [one.first + one.count for one in spec.adapters]
        starts = [0, *ends]
        stops = [*(one.first for one in spec.adapters), len(widths)]
        self.gaps = [sum(widths[start:stop]) for start, stop in zip(starts, stops, strict=True)]
        """Number of outputs before each adapter's, and behind the last one's, that nothing is added to."""
        for one in spec.adapters:
            self.add_module(one.name, ColumnAdapter(name, spec, one, context))

    def forward(self, hidden: torch.Tensor, local: bool = False) -> torch.Tensor:
        """Return what is added to the layer's outputs.

        Args:
            hidden: the layer's input.
            local: as for the layer.
        """
        parts: list[torch.Tensor] = []
        gaps = iter(self.gaps)
        for adapter in self.children():
            added = adapter(hidden, local)
            parts += [_zeros(added, next(gaps)), added]
        parts.append(_zeros(parts[-1], next(gaps)))
        parts = [part for part in parts if part.shape[-1]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _zeros(like: torch.Tensor, width: int) -> torch.Tensor:
    return like.new_zeros((*like.shape[:-1], width))


class ColumnAdapter(nn.Module):
    """An adapter of a column-parallel layer: A is whole, B is sharded like those rows of the weight that it adds to.

    `[S, B, in]` (`[S/tp, B, in]` with sequence parallelism) to `[S, B, width/tp]`. Collective: backward all-reduces
    `[S, B, rank]`. With sequence parallelism that is gathered in forward and reduce-scattered in backward, and the
    gradient of A is all-reduced, as it is behind `enter_tensor_parallel` (`local`), where nothing else is.
    """

    def __init__(self, name: str, spec: Linear, adapter: Adapter, context: TensorContext) -> None:
        super().__init__()
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.scale = adapter.scale
        part = spec.adapted(adapter)
        made = context.parameters(spec.adapter_tensors(name, adapter))
        self.a, self.b = made["a"], made["b"]
        self.shared_b = made.get("shared_b")
        self.shared = shared_heads(part, self.group)
        self.is_shared = len(self.shared.sections) == len(part.sections)
        """True if all rows of B are those of heads that ranks share, so that it is no sharded parameter."""

    def forward(self, hidden: torch.Tensor, local: bool = False) -> torch.Tensor:
        """Return the sum; the arguments are the layer's."""
        sees_a_part = local or self.sequence_parallel
        inner = F.linear(hidden, complete_gradient(self.a, self.group) if sees_a_part else self.a)
        if not local:
            inner = enter_tensor_parallel(inner, self.group, self.sequence_parallel)
        return F.linear(inner * self.scale, self._rows())

    def _rows(self) -> torch.Tensor:
        if self.is_shared:
            return with_shared(self.b.new_empty((0, self.b.shape[1])), self.b, self.shared, self.group)
        return with_shared(self.b, self.shared_b, self.shared, self.group)


class RowAdapter(nn.Module):
    """The adapter of a row-parallel layer: A is sharded like the weight's columns, B is whole.

    `[S, B, in/tp]` to this rank's part of the sum `[S, B, out]`, which travels in the layer's own sum over the ranks.
    Collective: backward all-reduces the gradient of B.
    """

    def __init__(self, name: str, spec: Linear, adapter: Adapter, context: TensorContext) -> None:
        super().__init__()
        self.group = context.tensor
        self.scale = adapter.scale
        made = context.parameters(spec.adapter_tensors(name, adapter))
        self.a, self.b = made["a"], made["b"]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return this rank's part."""
        return F.linear(F.linear(hidden, self.a) * self.scale, complete_gradient(self.b, self.group))
