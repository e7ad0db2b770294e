"""The weights that a proof begins with: every element of every tensor is drawn, so that none hides behind a zero."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.config.plan import RunPlan
from trainer.spec.tensors import Init
from trainer.tensor_parallel.init import Initial
from trainer.tensor_parallel.shard import ShardSpec, shard, with_padding

_SPREAD = 0.1
"""Standard deviation of what a new model begins with as zeros (biases) or ones (the weights of norms)."""


def drawn_weights(plan: RunPlan, only: str | None = None) -> dict[str, torch.Tensor]:
    """Return the whole model's weights by global name, without padding: fp32 on the CPU.

    Args:
        plan: of a trial.
        only: the one kind of vector (`vector_kinds`) that is drawn, while the others are as in a new model; "" for
            none; None: all are drawn.
    """
    found = {}
    for name, tensor in plan.model.tensors.items():
        numbers = torch.Generator().manual_seed(zlib.crc32(f"{plan.seed}/{name}".encode()))
        noise = torch.randn(tensor.shape, generator=numbers)
        if tensor.init in (Init.ones, Init.zeros) and not tensor.is_matrix:
            spread = _SPREAD if only in (None, kind_of(name)) else 0.0
            found[name] = spread * noise + (1.0 if tensor.init is Init.ones else 0.0)
        else:
            # The second matrix of an adapter begins at zero, and hides the first one's gradient.
            drawn = tensor.init in (Init.normal, Init.residual)
            found[name] = (plan.execution.std(tensor.init) if drawn else _SPREAD) * noise
    # Weights that half precision holds, too: rounding them is no fault of a layout.
    return {name: one.bfloat16().float() for name, one in found.items()}


def kind_of(name: str) -> str:
    """Return the name of a tensor without the number of its layer."""
    parts = name.split(".")
    return ".".join(parts[2:] if parts[0] == "blocks" else parts)


def vector_kinds(plan: RunPlan) -> tuple[str, ...]:
    """Return the kinds of a model's biases and weights of norms."""
    vectors = (name for name, tensor in plan.model.tensors.items() if not tensor.is_matrix)
    return tuple(dict.fromkeys(map(kind_of, vectors)))


@dataclass(frozen=True)
class Given:
    """The source of weights that are there already; see `trainer.tensor_parallel.init.Source`."""

    weights: Mapping[str, torch.Tensor]
    """Whole tensors by global name, without padding."""
    rank: int
    """Tensor-parallel rank."""
    size: int

    def __call__(self, spec: ShardSpec, initial: Initial) -> torch.Tensor:
        """Return this rank's part of a tensor."""
        whole = with_padding(self.weights[spec.name], spec)
        return whole.clone() if self.size == 1 else shard(whole, spec, self.rank, self.size)
