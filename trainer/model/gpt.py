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
from trainer.model.layers import block_name, layer_names
from trainer.model.norm import Norm
from trainer.model.positions import PositionLayer
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
    "layer_names",
]


def _build_embedding(context: ModelContext) -> VocabParallelEmbedding:
    spec = context.spec
    return VocabParallelEmbedding(
        "embedding",
        spec.vocab_size,
        spec.padded_vocab_size,
        spec.hidden_size,
        context,
        init_std=spec.init_std,
    )


def _build_head(context: ModelContext) -> VocabParallelHead:
    spec = context.spec
    return VocabParallelHead(
        "head",
        spec.vocab_size,
        spec.padded_vocab_size,
        spec.hidden_size,
        context,
        init_std=spec.init_std,
    )


def build_layer(name: str, context: ModelContext) -> nn.Module:
    """Build the layer `name` of `layer_names`, this rank's share, empty (see `fill`). No collective.

    The layer maps one tensor to one tensor: embedding ids `[B, S]` to hidden, head hidden to logits `[S, B, V/tp]`,
    all others hidden to hidden. With tied embeddings "head" is not a layer of its own: see `embedding_logits`.

    Raises:
        ConfigError: the model cannot be cut over the group.
        ValueError: there is no such layer to build.
    """
    context.check()
    if name == "embedding":
        return _build_embedding(context)
    if name == "position":
        return PositionLayer(name, context)
    if name == "final_norm":
        return Norm(name, context)
    if name == "head" and not context.spec.tied_embeddings:
        return _build_head(context)
    if name.startswith("blocks.") and name in layer_names(context.spec):
        return Block(name, context)
    known = [layer for layer in layer_names(context.spec) if layer != "head" or not context.spec.tied_embeddings]
    raise ValueError(f"layer must be one of {', '.join(known)}, but is {name}")


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
        self.embedding = _build_embedding(context)
        self.position = PositionLayer("position", context)
        self.blocks = nn.ModuleList(Block(block_name(index), context) for index in range(spec.num_layers))
        self.final_norm = Norm("final_norm", context)
        self.head = None if spec.tied_embeddings else _build_head(context)
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
        hidden = self.final_norm(hidden)
        if cache is not None:
            cache.advance(input_ids.shape[1])
        if labels is not None and self.context.spec.fused_loss:
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
