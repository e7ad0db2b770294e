"""Models and layers with the weights of a new run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from trainer.config.models import make_execution, make_model
from trainer.config.schema import ModelConfig
from trainer.model.context import ModelContext
from trainer.model.gpt import GPT
from trainer.spec.model import Model
from trainer.tensor_parallel.init import Drawn, fill
from trainer.topology.groups import Group, SingleGroup

M = TypeVar("M", bound=nn.Module)


def drawn(layer: M, group: Group, seed: int) -> M:
    """Fill an empty layer of a tensor-parallel rank with the weights of a new run; return it."""
    fill(layer, Drawn(seed, group))
    return layer


def context_of(
    config: ModelConfig,
    vocab_size: int,
    group: Group | None = None,
    sequence_parallel: bool = False,
    family: Callable[[Model], Model] = lambda model: model,
) -> ModelContext:
    """Return what the layers of a config are built with; by default whole, on one rank.

    `family` makes another model of the one that the config describes.
    """
    group = group or SingleGroup()
    execution = make_execution(config, group.size)
    model = family(make_model(config, vocab_size))
    return ModelContext(group, sequence_parallel, execution, spec=model)


def drawn_gpt(
    config: ModelConfig,
    vocab_size: int,
    seed: int,
    group: Group | None = None,
    sequence_parallel: bool = False,
) -> GPT:
    """Return a model with the weights of a new run; by default whole, on one rank."""
    group = group or SingleGroup()
    return drawn(GPT(context_of(config, vocab_size, group, sequence_parallel)), group, seed)
