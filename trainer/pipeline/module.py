"""The model as DeepSpeed pipeline modules, partitioned into stages as `partition.py` says.

Exactly one tensor travels between stages: the hidden state `[S, B, H]` (`[S/tp, B, H]` with sequence parallelism).
Each stage reads everything else that its layers need to know of a micro-batch for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.dualpipev import DualPipeVModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from trainer.config.plan import RunPlan
from trainer.config.schema import PipelineSchedule
from trainer.micro_batch import MicroBatch
from trainer.model.gpt import ModelContext, build_layer, build_tied, tied_head
from trainer.pipeline.partition import stage_bounds, stages
from trainer.spec.model import LayerKind

TIED_KEY = "embedding"


class BoundedPipelineModule(PipelineModule):  # type: ignore[misc]
    """A PipelineModule whose stages are given instead of guessed, and whose layers are handed their micro-batch.

    DeepSpeed's own `parameters` method builds the whole model on every rank to count it, and weighs an embedding
    like a head; see DeepSpeed #5078 for the empty stages that result.
    """

    def __init__(self, bounds: tuple[int, ...], layers: list[LayerSpec], **kwargs: object) -> None:
        self.bounds = bounds
        self.batch: MicroBatch | None = None
        """Micro-batch of the next forward pass: the engine puts it here before each pass."""
        super().__init__(layers, **kwargs)

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Run this stage's layers, which need not only DeepSpeed's tensor but also the micro-batch that it belongs to.

        Args:
            tensor: ids `[B, S]` on the first stage, hidden on the others.
        """
        batch, self.batch = self.batch, None
        if batch is None:
            raise RuntimeError("the engine must say which micro-batch a forward pass belongs to, but did not")
        for layer in self.forward_funcs:
            tensor = layer(tensor, batch)
        return tensor

    def _partition_layers(self, method: str = "uniform") -> None:
        self.parts = list(self.bounds)
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])


class BoundedDualPipeVModule(DualPipeVModule, BoundedPipelineModule):  # type: ignore[misc]
    """DualPipeV: rank r holds stages r and 2 pp - 1 - r of the given ones."""


MODULE_CLASSES: Mapping[PipelineSchedule, type[BoundedPipelineModule]] = {
    PipelineSchedule.f1b1: BoundedPipelineModule,
    PipelineSchedule.dualpipev: BoundedDualPipeVModule,
}
"""Module class for each schedule."""


@dataclass(frozen=True)
class Builder:
    """Builds and fills one layer after the other, only on the rank that owns it."""

    context: ModelContext
    fill: Callable[[nn.Module], object]
    """Gives an empty layer its memory and values."""

    def layer(self, name: str) -> nn.Module:
        """Return the layer of this name, filled."""
        layer = build_layer(name, self.context)
        self.fill(layer)
        return layer

    def tied(self, embeds: bool, heads: bool) -> nn.Module:
        """Return the embedding that the head is tied to, filled, for one of its uses or for both."""
        layer = build_tied(self.context, embeds, heads)
        self.fill(layer)
        return layer


class NamedLayerSpec(LayerSpec):  # type: ignore[misc]
    """Builds the layer of this name only on the rank that owns it."""

    def __init__(self, name: str, builder: Builder) -> None:
        super().__init__(nn.Module)
        self.name = name
        self.builder = builder

    def build(self, log: bool = False) -> nn.Module:
        """Build the layer."""
        return self.builder.layer(self.name)


class TiedEmbeddingSpec(TiedLayerSpec):  # type: ignore[misc]
    """The token embedding, used as the first layer and, through `forward_fn`, as the head.

    Args:
        builder: builds it.
        is_head: this is its use as the head.
        has_both: one rank holds both uses, and builds it once.
    """

    def __init__(self, builder: Builder, is_head: bool, has_both: bool) -> None:
        super().__init__(TIED_KEY, nn.Module, forward_fn=tied_head if is_head else None, tied_weight_attr="weight")
        self.builder = builder
        self.uses = (not is_head or has_both, is_head or has_both)

    def build(self, log: bool = False) -> nn.Module:
        """Build the embedding."""
        return self.builder.tied(*self.uses)


def layer_specs(builder: Builder, has_both: bool) -> list[LayerSpec]:
    """Return a spec for each layer, in order; a tied head shares the embedding's weight. The last returns the loss.

    Args:
        builder: builds the layers.
        has_both: one rank holds the first layer and the last.
    """
    specs: list[LayerSpec] = []
    for layer in builder.context.spec.layers:
        if builder.context.spec.head.tied and layer.kind in (LayerKind.embedding, LayerKind.head):
            specs.append(TiedEmbeddingSpec(builder, layer.kind is LayerKind.head, has_both))
        else:
            specs.append(NamedLayerSpec(layer.name, builder))
    return specs


def build_pipeline(plan: RunPlan, builder: Builder) -> BoundedPipelineModule:
    """Build this rank's stages, layer by layer. Collective over the world (DeepSpeed creates its own groups)."""
    topology = PipeModelDataParallelTopology(
        num_pp=plan.pipeline_parallel_size, num_mp=plan.tensor_parallel_size, num_dp=plan.data_parallel_size
    )
    build = MODULE_CLASSES[plan.schedule.kind]
    # The head returns the loss: DeepSpeed's hooks on a stage's output clear and scale gradients, and must see it.
    ends = [stage.rank_index for stage in (stages(plan)[0], stages(plan)[-1])]
    layers = layer_specs(builder, has_both=ends[0] == ends[1])
    module = build(stage_bounds(plan), layers, topology=topology, loss_fn=None)
    _count_bias_of_tied_head(module)
    return module


def _count_bias_of_tied_head(module: nn.Module) -> None:
    """Let the bias of a tied head count: DeepSpeed takes all parameters of a tied layer's later copy for copies."""
    for layer in module.modules():
        bias = getattr(layer, "head_bias", None)
        if bias is not None:
            bias.ds_pipe_replicated = False
