"""The GPT: layers by name, the whole model in one module, and its loss. Knows no pipeline.

One tensor travels between layers: hidden `[S, B, H]`, or `[S/tp, B, H]` with sequence parallelism.
"""

from __future__ import annotations

import torch
from torch import nn

from trainer.micro_batch import MicroBatch
from trainer.model.block import Block
from trainer.model.context import ModelContext
from trainer.model.norm import FinalNorm, Norm
from trainer.model.positions import PositionLayer
from trainer.spec.model import Block as BlockSpec
from trainer.spec.model import LayerSpec
from trainer.spec.parts import Embedding, Head, Positions
from trainer.spec.parts import Norm as NormSpec
from trainer.tensor_parallel.embedding import VocabParallelEmbedding, tied_head
from trainer.tensor_parallel.head import VocabParallelHead

__all__ = [
    "GPT",
    "ModelContext",
    "build_layer",
    "build_tied",
    "full_logits",
    "tied_head",
]


def build_layer(name: str, context: ModelContext) -> nn.Module:
    """Build the layer `name` of the model, this rank's share, empty (see `fill`). No collective.

    `layer(tensor, batch)` maps one tensor to one tensor, and is handed the `MicroBatch` that it belongs to: embedding
    ids `[B, S]` to hidden, head hidden to the loss, all others hidden to hidden. With tied embeddings "head" is not a
    layer of its own: see `tied_head`.

    Raises:
        ConfigError: the model cannot be sharded over the group.
        ValueError: there is no such layer to build.
    """
    context.check()
    spec = context.spec.layer(name).spec
    if isinstance(spec, Head) and spec.tied:
        raise ValueError("a tied head is no layer of its own: it is the embedding, used once more")
    return _built(name, spec, context)


def build_tied(context: ModelContext, embeds: bool = True, heads: bool = True) -> VocabParallelEmbedding:
    """Build the embedding that a head is tied to, empty, for one of its uses or for both. No collective.

    What only one use needs is built for it alone: the norm of looked-up rows, and the bias of the head.

    Args:
        context: the model's context.
        embeds: it looks tokens up.
        heads: it is used as the head.
    """
    context.check()
    spec, head = context.spec.embedding, context.spec.head
    norm = None if spec.norm is None or not embeds else Norm("embedding.norm", spec.norm, context)
    return VocabParallelEmbedding("embedding", spec, context, norm, ("head", head) if heads and head.tied else None)


def _built(name: str, spec: LayerSpec, context: ModelContext) -> nn.Module:
    if isinstance(spec, Embedding):
        return build_tied(context)
    if isinstance(spec, Positions):
        return PositionLayer(name, spec, context)
    if isinstance(spec, BlockSpec):
        return Block(name, spec, context)
    return FinalNorm(name, spec, context) if isinstance(spec, NormSpec) else VocabParallelHead(name, spec, context)


def full_logits(logits: torch.Tensor, context: ModelContext) -> torch.Tensor:
    """Gather `[..., V/tp]` into `[..., vocab_size]`, without padding. For generation; not differentiable.

    Collective over the tensor-parallel group.
    """
    gathered = context.tensor.all_gather(logits.detach(), dim=logits.ndim - 1)
    return gathered[..., : context.spec.vocab_size]


class GPT(nn.Module):
    """All layers in one module, empty (see `fill`). PP = 1 trains it.

    Parameter names are the global names, except those of a tied head's bias and of rows that ranks share.

    Args:
        context: the model's context.

    Raises:
        ConfigError: the model cannot be sharded over the group.
    """

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        context.check()
        self.context = context
        spec = context.spec
        blocks = (layer for layer in spec.layers if isinstance(layer.spec, BlockSpec))
        self.embedding = build_tied(context)
        self.position = PositionLayer("position", spec.positions, context)
        self.blocks = nn.ModuleList(_built(layer.name, layer.spec, context) for layer in blocks)
        self.final_norm = None if spec.final_norm is None else FinalNorm("final_norm", spec.final_norm, context)
        self.head = None if spec.head.tied else VocabParallelHead("head", spec.head, context)

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """Return the loss of a micro-batch, [] fp32, or, if it has no labels, this rank's logits `[S, B, V/tp]`.

        Collective over the tensor-parallel group.
        """
        hidden = self.embedding(batch.input_ids, batch)
        hidden = self.position(hidden, batch)
        for block in self.blocks:
            hidden = block(hidden, batch)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden, batch)
        if self.head is None:
            return tied_head(self.embedding, hidden, batch)
        result: torch.Tensor = self.head(hidden, batch)
        return result
