"""Models and layers with the weights of a new run."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from trainer.config.plan import ModelSpec
from trainer.model.context import ModelContext
from trainer.model.gpt import GPT
from trainer.tensor_parallel.init import Drawn, fill
from trainer.tensor_parallel.random import StepClock
from trainer.topology.groups import Group, SingleGroup

M = TypeVar("M", bound=nn.Module)


def drawn(layer: M, group: Group, seed: int) -> M:
    """Fill an empty layer of a tensor-parallel rank with the weights of a new run; return it."""
    fill(layer, Drawn(seed, group))
    return layer


def drawn_gpt(
    spec: ModelSpec,
    seed: int,
    group: Group | None = None,
    sequence_parallel: bool = False,
    clock: StepClock | None = None,
) -> GPT:
    """Return a model with the weights of a new run; by default whole, on one rank."""
    group = group or SingleGroup()
    context = ModelContext(group, sequence_parallel, spec=spec, clock=clock or StepClock(seed))
    return drawn(GPT(context), group, seed)
