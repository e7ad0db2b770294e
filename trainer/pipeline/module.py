"""The model as DeepSpeed pipeline modules, cut where `partition.py` says.

Exactly one tensor travels between stages: the hidden state `[S, B, H]` (`[S/tp, B, H]` with sequence parallelism).
Masks and positions are computed where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.dualpipev import DualPipeVModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from trainer.config.plan import RunPlan
from trainer.config.schema import PipelineSchedule
from trainer.model.gpt import ModelContext, build_layer, embedding_logits, language_model_loss
from trainer.model.layers import layer_names
from trainer.pipeline.partition import stage_bounds

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


class NamedLayerSpec(LayerSpec):  # type: ignore[misc]
    """Builds the layer of a name only on the rank that owns it."""

    def __init__(self, name: str, context: ModelContext) -> None:
        super().__init__(nn.Module)
        self.name = name
        self.context = context

    def build(self, log: bool = False) -> nn.Module:
        """Build the layer."""
        return build_layer(self.name, self.context)


class TiedEmbeddingSpec(TiedLayerSpec):  # type: ignore[misc]
    """The token embedding, used as the first layer and, through `forward_fn`, as the head."""

    def __init__(self, context: ModelContext, forward_fn: Callable[..., torch.Tensor] | None = None) -> None:
        super().__init__(TIED_KEY, nn.Module, forward_fn=forward_fn, tied_weight_attr="weight")
        self.context = context

    def build(self, log: bool = False) -> nn.Module:
        """Build the embedding; a stage that holds both uses builds it once."""
        return build_layer("embedding", self.context)


def layer_specs(context: ModelContext) -> list[LayerSpec]:
    """Return one spec a layer, in order; a tied head shares the embedding's weight."""
    tied = context.spec.tied_embeddings
    specs: list[LayerSpec] = []
    for name in layer_names(context.spec):
        if tied and name == "embedding":
            specs.append(TiedEmbeddingSpec(context))
        elif tied and name == "head":
            specs.append(TiedEmbeddingSpec(context, forward_fn=embedding_logits))
        else:
            specs.append(NamedLayerSpec(name, context))
    return specs


def build_pipeline(plan: RunPlan, context: ModelContext) -> PipelineModule:
    """Build this rank's stages. Collective over the world (DeepSpeed creates its own groups)."""
    topology = PipeModelDataParallelTopology(
        num_pp=plan.pipeline_parallel_size, num_mp=plan.tensor_parallel_size, num_dp=plan.data_parallel_size
    )
    dual = plan.config.layout.pipeline_schedule is PipelineSchedule.dualpipev
    module_class = BoundedDualPipeVModule if dual else BoundedPipelineModule
    loss = language_model_loss(context)

    def loss_fn(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return loss(logits, labels)

    return module_class(stage_bounds(plan), layer_specs(context), topology=topology, loss_fn=loss_fn)
