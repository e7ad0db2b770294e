"""The GPT: layers by name, the whole model in one module, and its loss. Knows no pipeline.

Between layers travels one tensor: hidden `[S, B, H]`, or `[S/tp, B, H]` with sequence parallelism.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from trainer.model.block import Block
from trainer.model.cache import KeyValueCache
from trainer.model.context import ModelContext
from trainer.model.norm import Norm
from trainer.model.positions import PositionLayer
from trainer.spec.model import Block as BlockSpec
from trainer.spec.model import LayerSpec
from trainer.spec.parts import Embedding, Head, Positions
from trainer.spec.parts import Norm as NormSpec
from trainer.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from trainer.tensor_parallel.embedding import VocabParallelEmbedding, embedding_logits, embedding_loss
from trainer.tensor_parallel.head import VocabParallelHead

__all__ = [
    "GPT",
    "KeyValueCache",
    "ModelContext",
    "build_layer",
    "embedding_logits",
    "embedding_loss",
    "full_logits",
    "language_model_loss",
]


def build_layer(name: str, context: ModelContext) -> nn.Module:
    """Build the layer `name` of the model, this rank's share, empty (see `fill`). No collective.

    The layer maps one tensor to one tensor: embedding ids `[B, S]` to hidden, head hidden to logits `[S, B, V/tp]`,
    all others hidden to hidden. With tied embeddings "head" is not a layer of its own: see `embedding_logits`.

    Raises:
        ConfigError: the model cannot be cut over the group.
        ValueError: there is no such layer to build.
    """
    context.check()
    spec = context.spec.layer(name).spec
    if isinstance(spec, Head) and spec.tied:
        raise ValueError("a tied head is no layer of its own: it is the embedding, used once more")
    return _built(name, spec, context)


def _built(name: str, spec: LayerSpec, context: ModelContext) -> nn.Module:
    if isinstance(spec, Embedding):
        return VocabParallelEmbedding(name, spec, context)
    if isinstance(spec, Positions):
        return PositionLayer(name, spec, context)
    if isinstance(spec, BlockSpec):
        return Block(name, spec, context)
    return Norm(name, spec, context) if isinstance(spec, NormSpec) else VocabParallelHead(name, spec, context)


def language_model_loss(context: ModelContext) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the loss of model.fused_loss=false: logits `[S, B, V/tp]` and labels `[B, S]` to the mean, [] fp32.

    Collective over the tensor-parallel group in forward; see `vocab_parallel_cross_entropy`.
    """
    return partial(vocab_parallel_cross_entropy, group=context.tensor, vocab_size=context.spec.vocab_size)


def full_logits(logits: torch.Tensor, context: ModelContext) -> torch.Tensor:
    """Gather `[..., V/tp]` into `[..., vocab_size]`, padding cut off. For generation; not differentiable.

    Collective over the tensor-parallel group.
    """
    gathered = context.tensor.all_gather(logits.detach(), dim=logits.ndim - 1)
    return gathered[..., : context.spec.vocab_size]


class GPT(nn.Module):
    """All layers in one module, empty (see `fill`); parameter names are the global names. What PP = 1 trains.

    Args:
        context: of the model.

    Raises:
        ConfigError: the model cannot be cut over the group.
    """

    def __init__(self, context: ModelContext) -> None:
        super().__init__()
        context.check()
        self.context = context
        spec = context.spec
        blocks = (layer for layer in spec.layers if isinstance(layer.spec, BlockSpec))
        self.embedding = VocabParallelEmbedding("embedding", spec.embedding, context)
        self.position = PositionLayer("position", spec.positions, context)
        self.blocks = nn.ModuleList(_built(layer.name, layer.spec, context) for layer in blocks)
        self.final_norm = None if spec.final_norm is None else Norm("final_norm", spec.final_norm, context)
        self.head = None if spec.head.tied else VocabParallelHead("head", spec.head, context)
        self._loss = language_model_loss(context)

    def forward(
        self, input_ids: torch.Tensor, cache: KeyValueCache | None = None, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map ids `[B, S]` to this rank's logits `[S, B, V/tp]`, or with labels `[B, S]` to the mean loss, [] fp32.

        With a cache, ids continue the tokens in it. Collective over the tensor-parallel group.

        Raises:
            ValueError: ids are not `[B, S]`, or a cache is used with sequence parallelism.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be [B, S], but have shape {tuple(input_ids.shape)}")
        if cache is not None and self.context.sequence_parallel and self.context.tensor.size > 1:
            raise ValueError("a key/value cache must be used with layout.sequence_parallel=false, but it is true")
        hidden = self.embedding(input_ids)
        hidden = self.position(hidden, start=0 if cache is None else cache.length)
        for block in self.blocks:
            hidden = block(hidden, cache)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        if labels is not None and self.context.execution.fused_loss:
            return self._fused_loss(hidden, labels)
        logits = embedding_logits(self.embedding, hidden) if self.head is None else self.head(hidden)
        return logits if labels is None else self._loss(logits, labels)

    def _fused_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.head is None:
            return embedding_loss(self.embedding, hidden, labels)
        loss: torch.Tensor = self.head(hidden, labels)
        return loss

    def loss(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy of labels `[B, S]`, [] fp32, the same on every tensor-parallel rank."""
        loss: torch.Tensor = self(input_ids, labels=labels)
        return loss
