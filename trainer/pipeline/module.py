"""The model as DeepSpeed pipeline modules, cut where `partition.py` says.

Exactly one tensor travels between stages: the hidden state `[S, B, H]` (`[S/tp, B, H]` with sequence parallelism).
Masks and positions are computed where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.dualpipev import DualPipeVModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from trainer.config.plan import RunPlan
from trainer.config.schema import PipelineSchedule
from trainer.model.gpt import ModelContext, build_layer, embedding_logits, embedding_loss, language_model_loss
from trainer.pipeline.partition import stage_bounds
from trainer.spec.model import LayerKind
from trainer.tensor_parallel.embedding import VocabParallelEmbedding

TIED_KEY = "embedding"


class BoundedPipelineModule(PipelineModule):  # type: ignore[misc]
    """A PipelineModule whose stages are given instead of guessed.

    DeepSpeed's own `parameters` method builds the whole model on every rank to count it, and weighs an embedding
    like a head; see DeepSpeed #5078 for the empty stages that come of it.
    """

    def __init__(self, bounds: tuple[int, ...], layers: list[LayerSpec], **kwargs: object) -> None:
        self.bounds = bounds
        super().__init__(layers, **kwargs)

    def _partition_layers(self, method: str = "uniform") -> None:
        self.parts = list(self.bounds)
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])


class BoundedDualPipeVModule(DualPipeVModule, BoundedPipelineModule):  # type: ignore[misc]
    """DualPipeV: rank r holds stages r and 2 pp - 1 - r of the given ones."""


MODULE_CLASSES: Mapping[PipelineSchedule, type[BoundedPipelineModule]] = {
    PipelineSchedule.f1b1: BoundedPipelineModule,
    PipelineSchedule.dualpipev: BoundedDualPipeVModule,
}
"""What holds a rank's stages under each schedule."""


@dataclass(frozen=True)
class Builder:
    """Builds and fills one layer after the other, only on the rank that owns it."""

    context: ModelContext
    fill: Callable[[nn.Module], object]
    """Gives an empty layer its memory and values."""

    def layer(self, name: str) -> nn.Module:
        """Return the layer of a name, filled."""
        layer = build_layer(name, self.context)
        self.fill(layer)
        return layer


class NamedLayerSpec(LayerSpec):  # type: ignore[misc]
    """Builds the layer of a name only on the rank that owns it."""

    def __init__(self, name: str, builder: Builder) -> None:
        super().__init__(nn.Module)
        self.name = name
        self.builder = builder

    def build(self, log: bool = False) -> nn.Module:
        """Build the layer."""
        return self.builder.layer(self.name)


class TiedEmbeddingSpec(TiedLayerSpec):  # type: ignore[misc]
    """The token embedding, used as the first layer and, through `forward_fn`, as the head."""

    def __init__(self, builder: Builder, forward_fn: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__(TIED_KEY, nn.Module, forward_fn=forward_fn, tied_weight_attr="weight")
        self.builder = builder

    def build(self, log: bool = False) -> nn.Module:
        """Build the embedding; a stage that holds both uses builds it once."""
        return self.builder.layer("embedding")


@dataclass
class LabelSlot:
    """Where the engine puts the labels of the micro-batch that it is about to send through the last stage.

    DeepSpeed gives labels to a loss function behind the layers. The fused loss is a layer: DeepSpeed's hooks on what a
    stage returns (they clear and scale gradients) must see the loss, not what the head is applied to.
    """

    labels: torch.Tensor | None = None
    """[B, S]; None on stages without the head."""

    def take(self) -> torch.Tensor:
        """Return the labels, once."""
        labels, self.labels = self.labels, None
        if labels is None:
            raise RuntimeError("the engine must put labels down before the last stage runs, but put none")
        return labels


class LossHead(nn.Module):
    """An untied head that returns the loss.

    Args:
        head: takes hidden and labels.
        slot: where the labels are.
    """

    def __init__(self, head: nn.Module, slot: LabelSlot) -> None:
        super().__init__()
        self.head = head
        self.slot = slot

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of the micro-batch."""
        loss: torch.Tensor = self.head(hidden, self.slot.take())
        return loss


class LossHeadSpec(NamedLayerSpec):
    """Builds the untied head with its loss."""

    def __init__(self, builder: Builder, slot: LabelSlot) -> None:
        super().__init__("head", builder)
        self.slot = slot

    def build(self, log: bool = False) -> nn.Module:
        """Build the layer."""
        return LossHead(super().build(log), self.slot)


def _tied_loss(slot: LabelSlot, module: VocabParallelEmbedding, hidden: torch.Tensor) -> torch.Tensor:
    return embedding_loss(module, hidden, slot.take())


def layer_specs(builder: Builder, slot: LabelSlot) -> list[LayerSpec]:
    """Return one spec a layer, in order; a tied head shares the embedding's weight.

    With model.fused_loss the last layer returns the loss of the labels in `slot`, otherwise logits.
    """
    tied, fused = builder.context.spec.head.tied, builder.context.execution.fused_loss
    specs: list[LayerSpec] = []
    for layer in builder.context.spec.layers:
        if tied and layer.kind is LayerKind.embedding:
            specs.append(TiedEmbeddingSpec(builder))
        elif tied and layer.kind is LayerKind.head:
            forward = partial(_tied_loss, slot) if fused else embedding_logits
            specs.append(TiedEmbeddingSpec(builder, forward_fn=forward))
        elif layer.kind is LayerKind.head and fused:
            specs.append(LossHeadSpec(builder, slot))
        else:
            specs.append(NamedLayerSpec(layer.name, builder))
    return specs


def build_pipeline(plan: RunPlan, builder: Builder) -> PipelineModule:
    """Build this rank's stages, layer by layer. Collective over the world (DeepSpeed creates its own groups)."""
    topology = PipeModelDataParallelTopology(
        num_pp=plan.pipeline_parallel_size, num_mp=plan.tensor_parallel_size, num_dp=plan.data_parallel_size
    )
    unfused = language_model_loss(builder.context)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return unfused(logits, labels)

    slot = LabelSlot()
    loss_fn = None if builder.context.execution.fused_loss else loss
    build = MODULE_CLASSES[plan.config.layout.pipeline_schedule]
    module = build(stage_bounds(plan), layer_specs(builder, slot), topology=topology, loss_fn=loss_fn)
    module.label_slot = slot
    return module
