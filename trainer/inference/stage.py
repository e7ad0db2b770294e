"""The layers of one pipeline stage as a model that is not trained: with a cache, and logits only where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from trainer.micro_batch import MicroBatch
from trainer.model.cache import CachedPass
from trainer.model.gpt import ModelContext, build_layer, build_tied, full_logits
from trainer.spec.execution import Execution, RecomputeKind
from trainer.spec.model import LayerKind, Model
from trainer.topology.groups import Group, SingleGroup

_BEHIND_THE_BLOCKS = (LayerKind.final_norm, LayerKind.head)
"""Layers that see each position by itself: they are asked only for those that somebody wants to know."""


class StageModel(nn.Module):
    """Consecutive layers of the model, in evaluation mode, empty (see `fill`).

    Args:
        context: the model's context, without sequence parallelism.
        names: names of the layers; None: all of them.

    Raises:
        ConfigError: the model cannot be sharded over the group.
    """

    def __init__(self, context: ModelContext, names: Sequence[str] | None = None) -> None:
        super().__init__()
        context.check()
        self.context = context
        spec = context.spec
        self.names = tuple(layer.name for layer in spec.layers) if names is None else tuple(names)
        self.is_first = spec.layers[0].name in self.names
        self.is_last = spec.layers[-1].name in self.names
        # A stage that holds both uses of a tied embedding has it once.
        owners = dict.fromkeys(self._owner(name) for name in self.names)
        self.layers = nn.ModuleDict({_key(name): self._built(name) for name in owners})
        self.eval()

    def _built(self, name: str) -> nn.Module:
        if self.context.spec.head.tied and self.context.spec.layer(name).kind is LayerKind.embedding:
            return build_tied(self.context, embeds=self.is_first, heads=self.is_last)
        return build_layer(name, self.context)

    def _owner(self, name: str) -> str:
        """Return the layer that has the weights of a layer: itself, or the embedding that a head is tied to."""
        spec = self.context.spec
        is_tied_head = spec.head.tied and spec.layer(name).kind is LayerKind.head
        return spec.layers[0].name if is_tied_head else name

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def forward(self, hidden: torch.Tensor, cache: CachedPass) -> torch.Tensor:
        """Return this stage's hidden `[S, B, H]`; the last stage returns the last position's logits, fp32 `[B, V]`.

        Args:
            hidden: ids `[B, S]` on the first stage, the hidden of the stage before on the others.
            cache: the pass, which has the same ids.

        Collective over the tensor-parallel group.
        """
        hidden = self.through_blocks(hidden, cache.batch, cache)
        if not self.is_last:
            return hidden
        return full_logits(self.local_logits(hidden[-1:], cache.batch)[-1], self.context).float()

    def through_blocks(self, hidden: torch.Tensor, batch: MicroBatch, cache: CachedPass | None = None) -> torch.Tensor:
        """Return the hidden `[S, B, H]` behind the last block of this stage.

        Args:
            hidden: ids `[B, S]` on the first stage, the hidden of the stage before on the others.
            batch: the tokens and their positions, without labels.
            cache: the pass that keeps keys and values; None: nothing is kept.

        Collective over the tensor-parallel group.
        """
        for name in self.names:
            kind = self.context.spec.layer(name).kind
            if kind is LayerKind.block:
                hidden = self.layers[_key(name)](hidden, batch, cache)
            elif kind not in _BEHIND_THE_BLOCKS:
                hidden = self.layers[_key(name)](hidden, batch)
        return hidden

    def local_logits(self, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return this rank's logits `[n, B, V/tp]` of any positions `[n, B, H]`, on the last stage.

        Collective over the tensor-parallel group.
        """
        for name in self.names:
            layer, kind = self.layers[_key(self._owner(name))], self.context.spec.layer(name).kind
            if kind is LayerKind.head and self.context.spec.head.tied:
                hidden = layer(hidden, batch, as_head=True)
            elif kind in _BEHIND_THE_BLOCKS:
                hidden = layer(hidden, batch)
        return hidden


def _key(name: str) -> str:
    """Return the name of a layer as torch takes it for a module's."""
    return name.replace(".", "_")


def stage_model(
    model: Model, execution: Execution, group: Group | None = None, names: Sequence[str] | None = None
) -> StageModel:
    """Return an empty stage of a model, computed as it is without training.

    Args:
        model: the whole model.
        execution: how it was trained; only its padding counts here.
        group: the tensor-parallel group; None: this process holds whole tensors.
        names: as for `StageModel`.

    Raises:
        ConfigError: as `StageModel`.
    """
    execution = replace(execution, recompute=RecomputeKind.none)
    return StageModel(ModelContext(group or SingleGroup(), False, execution, spec=model), names)
