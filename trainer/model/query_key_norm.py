"""Norms of queries and keys before the rotation: of each head by itself, or over all heads of the model.

Source: arXiv 2302.05442 (ViT-22B), section 3; per head as in Qwen3, over the full width as in OLMo 2, arXiv 2501.00656.
Over the full width the statistics of a token are those of all tensor-parallel ranks' heads: their sums are all-reduced,
in backward too, since each rank's heads depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trainer.model.norm import Norm
from trainer.spec.parts import Norm as NormSpec
from trainer.spec.parts import NormKind
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.mappings import sum_over_ranks


class HeadNorm(Norm):
    """Norm of each head, `[..., D] -> [..., D]`, with one weight for all heads.

    Each rank's gradient is that of its own heads, so backward all-reduces it over the tensor-parallel group.
    """

    def __init__(self, name: str, spec: NormSpec, context: TensorContext) -> None:
        super().__init__(name, spec, context, sees_a_part=True)


class CutNorm(Norm):
    """Norm over a width of which this rank has a part, `[..., W/tp] -> [..., W/tp]`.

    With fewer heads than ranks every rank holds the whole weight and has the elements of one head; backward then
    all-reduces the weight's gradient.

    Args:
        name: global name, `<name>.weight`.
        spec: the whole width, and the heads that it is made of.
        context: the model's context.
    """

    def __init__(self, name: str, spec: NormSpec, context: TensorContext) -> None:
        assert spec.heads is not None, "a width that is sharded is made of heads"
        group = context.tensor
        is_shared = spec.heads < group.size
        super().__init__(name, spec, context, sees_a_part=is_shared)
        self.width = spec.width
        self.copies = group.size // spec.heads if is_shared else 1
        """Number of ranks that have the same elements."""
        self.head = group.rank // self.copies if is_shared else None
        """This rank's head, if its weight is not the rank's own."""
        self.head_width = spec.width // spec.heads

    def sums(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of the sums that the statistics are made of, `[k, ...]` fp32. Local."""
        values, count = hidden.float(), hidden.shape[-1]
        if self.kind is NormKind.rmsnorm:
            return values.square().sum(dim=-1).unsqueeze(0) / self.copies
        # Sums of squares around each rank's own mean, since plain ones would cancel.
        mean = values.mean(dim=-1)
        around = (values - mean.unsqueeze(-1)).square().sum(dim=-1)
        return torch.stack((mean * count, around, mean.square() * count)) / self.copies

    def scaled(self, hidden: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        """Normalise this rank's part with the sums of all ranks, `[k, ...]`. Local."""
        values = hidden.float()
        if self.kind is NormKind.rmsnorm:
            variance = sums[0] / self.width
        else:
            mean = sums[0] / self.width
            variance = (sums[1] + sums[2]) / self.width - mean.square()
            values = values - mean.unsqueeze(-1)
        values = values * torch.rsqrt(variance + self.eps).unsqueeze(-1)
        weight, _ = self.parameters_in_use()
        if weight is not None and self.head is not None:
            weight = weight.narrow(0, self.head * self.head_width, self.head_width)
        if weight is not None:
            values = values * (weight.float() + self.offset)
        return values.to(hidden.dtype)


def normalised_over_ranks(parts: Sequence[tuple[CutNorm, torch.Tensor]]) -> list[torch.Tensor]:
    """Normalise several tensors `[..., W/tp]` of the same tokens, each over its whole width.

    Collective over the tensor-parallel group: one all-reduce in forward and one in backward, for all of them.
    """
    group = parts[0][0].group
    if group.size == 1:
        return [norm(hidden) for norm, hidden in parts]
    own = [norm.sums(hidden) for norm, hidden in parts]
    whole = torch.split(sum_over_ranks(torch.cat(own), group), [len(sums) for sums in own])
    return [norm.scaled(hidden, sums) for (norm, hidden), sums in zip(parts, whole, strict=True)]
