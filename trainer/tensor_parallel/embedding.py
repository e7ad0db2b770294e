"""Token embedding with its vocabulary sharded over the tensor-parallel group; also the head that is tied to it.

Source: Megatron-LM, arXiv 1909.08053, section 3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from trainer.kernels.loss_programs import LossPrograms
from trainer.micro_batch import MicroBatch
from trainer.spec.parts import Embedding, Head
from trainer.tensor_parallel.gradients import adds_in_place, row_gradient
from trainer.tensor_parallel.head import apply_head
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.logits import LogitShape
from trainer.tensor_parallel.mappings import reduce_from_tensor_parallel, reduce_scatter_to_sequence
from trainer.tensor_parallel.token_ids import check_token_ids


class _Rows(torch.autograd.Function):
    """`F.embedding` whose weight gradient may be added in place."""

    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids, weight)
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor | None]:
        ids, weight = ctx.saved_tensors
        return None, row_gradient(weight, ids, grads[0])


def _rows(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if adds_in_place(weight):
        return cast(torch.Tensor, _Rows.apply(ids, weight))  # type: ignore[no-untyped-call]
    return F.embedding(ids, weight)


class VocabParallelEmbedding(nn.Module):
    """Rows of the embedding sharded over the group; rank r holds ids [r V/tp, (r + 1) V/tp).

    As a layer it maps ids `[B, S]` to hidden `[S, B, H]`, or `[S/tp, B, H]` with sequence parallelism. Forward is an
    all-reduce, or a reduce-scatter over S whose backward is an all-gather.
    With `as_head=True` it is the head that is tied to it: see `tied_head`.

    Args:
        name: global name, `<name>.weight`.
        spec: number of ids that exist, H, and the factor of the rows. Rows that are padding start as zero and stay so.
        context: with sequence parallelism hidden is a sequence shard.
        norm: norm of the looked-up rows.
        head: the head that is tied to it, whose bias it then holds, and its global name.

    Raises:
        ConfigError: the padded vocabulary is not divisible by the group's size.
    """

    def __init__(
        self,
        name: str,
        spec: Embedding,
        context: TensorContext,
        norm: nn.Module | None = None,
        head: tuple[str, Head] | None = None,
    ) -> None:
        super().__init__()
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.vocab_size = spec.vocab_size
        self.fused_loss = context.execution.fused_loss
        self.programs: LossPrograms | None = None
        self.scale = spec.scale
        self.weight = context.parameters(replace(spec, norm=None).tensors(name))["weight"]
        self.rows = self.weight.shape[0]
        self.norm = norm
        self.logit_shape = LogitShape() if head is None else LogitShape.of(head[1])
        self.head_bias = None if head is None else context.parameters(head[1].tensors(head[0])).get("bias")

    def forward(self, tensor: torch.Tensor, batch: MicroBatch, as_head: bool = False) -> torch.Tensor:
        """Embed ids `[B, S]`; with `as_head` take hidden to what the head makes of it."""
        # Both uses go through __call__, so that ZeRO-3's hooks gather the weight.
        return apply_head(self, tensor, batch) if as_head else self._embed(tensor)

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        check_token_ids(ids, self.vocab_size)
        hidden = self._looked_up(ids.transpose(0, 1))
        if self.scale != 1.0:
            hidden = hidden * self.scale
        return hidden if self.norm is None else cast(torch.Tensor, self.norm(hidden))

    def _looked_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids `[S, B]` from the ranks that hold them."""
        if self.group.size == 1:
            return _rows(ids, self.weight)
        local = ids - self.group.rank * self.rows
        elsewhere = (local < 0) | (local >= self.rows)
        hidden = _rows(local.masked_fill(elsewhere, 0), self.weight)
        hidden = hidden.masked_fill(elsewhere.unsqueeze(-1), 0.0)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence(hidden, self.group)
        return reduce_from_tensor_parallel(hidden, self.group)


def tied_head(module: VocabParallelEmbedding, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """Apply the embedding as the head: see `apply_head`."""
    result: torch.Tensor = module(hidden, batch, as_head=True)
    return result
