"""One transformer block.

Source: pre-norm as in GPT-2 (Radford et al. 2019); recomputation arXiv 1604.06174, selective arXiv 2205.05198.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.micro_batch import MicroBatch
from trainer.model.attention import Attention
from trainer.model.cache import CachedPass
from trainer.model.context import ModelContext
from trainer.model.mlp import MLP
from trainer.model.norm import Norm
from trainer.spec.execution import RecomputeKind
from trainer.spec.model import Block as BlockSpec
from trainer.spec.model import Wiring
from trainer.tensor_parallel.mappings import enter_tensor_parallel, leave_tensor_parallel
from trainer.tensor_parallel.random import hidden_dropout, sequence_rows, training_place


def _normed(norm: Norm | None, hidden: torch.Tensor) -> torch.Tensor:
    return hidden if norm is None else cast(torch.Tensor, norm(hidden))


class Block(nn.Module):
    """Attention and MLP, joined to the residual stream as `Wiring` says.

    `[S, B, H] -> [S, B, H]` (`[S/tp, B, H]` sequence-parallel).

    With model.recompute=full, backward computes the block again, its forward collectives included.

    Args:
        name: global name.
        spec: attention, MLP, norms and their wiring.
        context: the model's context.
    """

    def __init__(self, name: str, spec: BlockSpec, context: ModelContext) -> None:
        super().__init__()
        execution = context.execution
        self.name = name
        self.group = context.tensor
        self.sequence_parallel = context.sequence_parallel
        self.dropout = execution.dropout
        self.recompute = execution.recompute is RecomputeKind.full
        self.wiring = spec.wiring
        self.residual_scale = spec.residual_scale
        # Dropout is different for both branches, so that their sums over ranks cannot be joined.
        self.joins_branches = spec.wiring.is_parallel and self.group.size > 1 and self.dropout == 0

        def norm(part: str) -> Norm | None:
            return Norm(f"{name}.{part}", spec.norm, context) if part in spec.norm_names else None

        self.attention_norm = norm("attention_norm")
        self.attention = Attention(f"{name}.attention", spec.attention, context)
        self.attention_output_norm = norm("attention_output_norm")
        self.mlp_norm = norm("mlp_norm")
        self.mlp = MLP(f"{name}.mlp", spec.feed_forward, context)
        self.mlp_output_norm = norm("mlp_output_norm")
        # Not the method itself: a block that refers to itself keeps its weights until Python looks for such circles.
        self._compiled: Callable[..., torch.Tensor] | None = None

    def compile_transform(self) -> None:
        """Let torch.compile make the block's program at its first call; blocks of the same kind share it."""
        self._compiled = torch.compile(self._forward, dynamic=False)

    def forward(self, hidden: torch.Tensor, batch: MicroBatch, cache: CachedPass | None = None) -> torch.Tensor:
        """Return the block's output for one micro-batch."""
        transform = self._compiled or self._forward
        if self.recompute and self.training and torch.is_grad_enabled():
            recomputed = checkpoint(transform, hidden, batch, cache, use_reentrant=False, preserve_rng_state=False)
            return cast(torch.Tensor, recomputed)
        if cache is not None:
            # Lengths change with every token; compiling each of them anew would take longer than it saves.
            return self._forward(hidden, batch, cache)
        return transform(hidden, batch, None)

    def _forward(self, hidden: torch.Tensor, batch: MicroBatch, cache: CachedPass | None) -> torch.Tensor:
        if self.joins_branches:
            return hidden + self._scaled(self._joined_branches(hidden, batch, cache))
        if self.wiring.is_parallel:
            normed = _normed(self.attention_norm, hidden)
            attended = self._dropped(self.attention(normed, batch, cache), batch, "attention")
            transformed = self.mlp(normed if self.mlp_norm is None else self.mlp_norm(hidden))
            return hidden + self._scaled(attended) + self._scaled(self._dropped(transformed, batch, "mlp"))
        attended = self.attention(self._before(self.attention_norm, hidden), batch, cache)
        attended = self._after(self.attention_norm, self.attention_output_norm, attended)
        hidden = self._joined(self.attention_norm, hidden, self._dropped(attended, batch, "attention"))
        transformed = self.mlp(self._before(self.mlp_norm, hidden))
        transformed = self._after(self.mlp_norm, self.mlp_output_norm, transformed)
        return self._joined(self.mlp_norm, hidden, self._dropped(transformed, batch, "mlp"))

    def _joined_branches(self, hidden: torch.Tensor, batch: MicroBatch, cache: CachedPass | None) -> torch.Tensor:
        """Return attention plus MLP of a parallel block, with one message each in forward and backward, not two.

        Both end in partial sums over the tensor-parallel ranks, which are added before they are reduced; and both
        begin with the same input, or with two that travel as one.
        """
        inputs = [_normed(self.attention_norm, hidden)]
        if self.mlp_norm is not None:
            inputs.append(self.mlp_norm(hidden))
        joined = torch.cat(inputs, dim=-1) if len(inputs) > 1 else inputs[0]
        entered = enter_tensor_parallel(joined, self.group, self.sequence_parallel).chunk(len(inputs), dim=-1)
        partial = self.attention(entered[0], batch, cache, local=True) + self.mlp(entered[-1], local=True)
        whole = leave_tensor_parallel(partial, self.group, self.sequence_parallel)
        return self.mlp.down.biased(self.attention.output.biased(whole))

    def _scaled(self, branch: torch.Tensor) -> torch.Tensor:
        return branch if self.residual_scale == 1.0 else branch * self.residual_scale

    def _before(self, norm: Norm | None, hidden: torch.Tensor) -> torch.Tensor:
        """Return the part of the residual stream that attention or MLP reads."""
        return hidden if self.wiring in (Wiring.post, Wiring.output) else _normed(norm, hidden)

    def _after(self, norm: Norm | None, output_norm: Norm | None, branch: torch.Tensor) -> torch.Tensor:
        """Return the output of attention or MLP that is added to the stream."""
        return _normed(norm if self.wiring is Wiring.output else output_norm, branch)

    def _joined(self, norm: Norm | None, hidden: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self._scaled(branch)
        return _normed(norm, hidden) if self.wiring is Wiring.post else hidden

    def _dropped(self, hidden: torch.Tensor, batch: MicroBatch, part: str) -> torch.Tensor:
        # Leaves before it reads the name: torch.compile would otherwise compile every block anew.
        if not self.training or self.dropout == 0:
            return hidden
        name = f"{self.name}.{part}"
        rows = sequence_rows(batch, self.group, self.sequence_parallel)
        return hidden_dropout(hidden, self.dropout, training_place(batch, name), name, rows)
