"""The head: the last matrix, with its vocabulary sharded over the tensor-parallel group, and the loss after it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from trainer.kernels.loss_programs import LossPrograms
from trainer.micro_batch import MicroBatch
from trainer.spec.parts import Head
from trainer.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from trainer.tensor_parallel.fused_loss import HeadShard, vocab_parallel_linear_cross_entropy
from trainer.tensor_parallel.init import TensorContext
from trainer.tensor_parallel.linear import column_parallel_linear
from trainer.tensor_parallel.logits import LogitShape
from trainer.topology.groups import Group


class HoldsHead(Protocol):
    """A module whose weight is used as a head: a head of its own, or the embedding that the head is tied to."""

    weight: nn.Parameter
    """Rows of this rank, `[V/tp, H]`."""
    logit_shape: LogitShape
    group: Group
    sequence_parallel: bool
    vocab_size: int
    """Number of ids that exist."""
    fused_loss: bool
    """True if the loss is computed without ever holding all logits."""
    programs: LossPrograms | None

    @property
    def head_bias(self) -> nn.Parameter | None:
        """`[V/tp]`, if the head has one."""


def apply_head(module: HoldsHead, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """Return the loss of the micro-batch, [] fp32, or, if it has no labels, this rank's logits `[S, B, V/tp]`.

    Call it inside the module's forward, where ZeRO-3 has gathered the weight.

    Collective over the tensor-parallel group: as a column-parallel linear layer and `vocab_parallel_cross_entropy`, or
    with `fused_loss` as `vocab_parallel_linear_cross_entropy`.
    """
    group, sequence_parallel, vocab_size = module.group, module.sequence_parallel, module.vocab_size
    if batch.labels is not None and module.fused_loss:
        shard = HeadShard(module.weight, group, vocab_size, module.head_bias, module.logit_shape, module.programs)
        return vocab_parallel_linear_cross_entropy(hidden, shard, batch, sequence_parallel)
    products = column_parallel_linear(hidden, module.weight, module.head_bias, group, sequence_parallel)
    logits = module.logit_shape.logits(products)
    return logits if batch.labels is None else vocab_parallel_cross_entropy(logits, batch, group, vocab_size)


class VocabParallelHead(nn.Module):
    """Maps hidden `[S, B, H]` (`[S/tp, B, H]` with sequence parallelism) to the loss, or without labels to logits.

    See `apply_head`.

    Args:
        name: global name, `<name>.weight` and `<name>.bias`.
        spec: number of ids that exist, H, and what is done to the logits.
        context: with sequence parallelism hidden is a sequence shard.

    Raises:
        ConfigError: the padded vocabulary is not divisible by the group's size.
    """

    def __init__(self, name: str, spec: Head, context: TensorContext) -> None:
        super().__init__()
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.vocab_size = spec.vocab_size
        self.fused_loss = context.execution.fused_loss
        self.programs: LossPrograms | None = None
        self.logit_shape = LogitShape.of(spec)
        made = context.parameters(spec.tensors(name))
        self.weight = made["weight"]
        self.bias = made.get("bias")

    @property
    def head_bias(self) -> nn.Parameter | None:
        """The bias, by the name that a tied head has it by too."""
        return self.bias

    def forward(self, hidden: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """See `apply_head`."""
        return apply_head(self, hidden, batch)
