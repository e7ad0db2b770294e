"""Head and cross-entropy in one: the logits of a few rows at a time, never all of them.

The whole logits are the largest tensor of a small model: S x B x V in fp32, their gradient once more, and each of a
handful of passes reads them from memory. Here a chunk of rows goes through matrix product, softmax, loss and both
gradients while it is in the cache, in forward; backward only scales what is there.
Source: vocabulary-parallel loss arXiv 1909.08053, section 3; chunks with the gradient in forward as in Liger Kernel,
arXiv 2410.10989, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F

from trainer.tensor_parallel.cross_entropy import local_targets
from trainer.tensor_parallel.mappings import SEQUENCE_DIM
from trainer.tensor_parallel.token_ids import check_token_ids
from trainer.topology.groups import Group

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 25}
"""Logits in a chunk: on the CPU 16 MiB in fp32, which stay in the cache; on a GPU enough to fill it."""
_ROW_MULTIPLE = 64


def chunk_rows(rows: int, width: int, device: str) -> int:
    """Return how many of `rows` rows of `width` logits are computed at a time."""
    wanted = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cuda"]) // max(1, width)
    wanted = max(_ROW_MULTIPLE, wanted // _ROW_MULTIPLE * _ROW_MULTIPLE)
    # Equal chunks: a short last one would cost almost as much as a whole one.
    chunks = -(-rows // wanted)
    return -(-rows // chunks) if chunks else 1


class _Shard:
    """This rank's columns of the head, and what they make of a chunk of rows."""

    def __init__(self, weight: torch.Tensor, valid: int, group: Group) -> None:
        self.padding = weight.shape[0] - valid
        self.weight = weight[:valid]
        self.group = group
        self.valid = valid

    def chunk(
        self, rows: torch.Tensor, columns: torch.Tensor, here: torch.Tensor, wants_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows' losses, summed, and softmax - one-hot [rows, valid] in the rows' dtype (if wanted).

        Collective over the group: one all-gather of two numbers a row.
        """
        if self.valid == 0:
            lowest = torch.full((2, len(rows)), _LOWEST, dtype=torch.float32, device=rows.device)
            return self._loss(*lowest)[0], rows.new_empty((len(rows), 0))
        logits = F.linear(rows, self.weight)
        picked = logits.gather(-1, columns.unsqueeze(-1)).squeeze(-1).float().masked_fill_(~here, _LOWEST)
        if not wants_grad:
            return self._loss(logits.float().logsumexp(dim=-1), picked)[0], logits
        peak = logits.amax(dim=-1).float()
        grad = torch.softmax(logits, dim=-1, dtype=torch.float32)
        # The largest probability is 1 / sum(exp(logit - peak)), so this is the log of the sum of exp(logit).
        log_sum = peak - grad.amax(dim=-1).log()
        loss, whole_log_sum = self._loss(log_sum, picked)
        if self.group.size > 1:
            grad.mul_((log_sum - whole_log_sum).exp_().unsqueeze(-1))
        grad.scatter_add_(-1, columns.unsqueeze(-1), here.to(torch.float32).neg_().unsqueeze(-1))
        return loss, grad.to(rows.dtype)

    def _loss(self, log_sum: torch.Tensor, picked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the ranks' sums together; return the summed loss and each row's log of the whole sum."""
        if self.group.size > 1:
            parts = self.group.all_gather(torch.stack((log_sum, picked)), dim=0).view(self.group.size, 2, -1)
            log_sum, picked = parts[:, 0].logsumexp(dim=0), parts[:, 1].amax(dim=0)
        return (log_sum - picked).sum(), log_sum


_LOWEST = -1e30
"""Logit of what is on another rank: finite, so that no difference is nan."""


@dataclass
class _Gradients:
    """Of the summed loss, not yet divided by the number of rows."""

    rows: torch.Tensor
    """In the rows' dtype."""
    weight: torch.Tensor
    """fp32, padding included."""

    @classmethod
    def empty(cls, rows: torch.Tensor, weight: torch.Tensor) -> _Gradients:
        # Chunks are added up: in half precision the sum would lose what each of them adds.
        return cls(torch.empty_like(rows), torch.empty_like(weight, dtype=torch.float32))

    def add(self, part: slice, rows: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor) -> None:
        """Put in a chunk's share: `grad` [rows, valid] is that of its logits."""
        mine = self.weight[: len(weight)]
        if len(weight) == 0:
            self.rows[part] = 0.0
            return
        torch.mm(grad, weight, out=self.rows[part])
        if rows.dtype is torch.float32:
            torch.addmm(mine, grad.t(), rows, beta=0.0 if part.start == 0 else 1.0, out=mine)
        elif part.start == 0:
            mine.copy_(grad.t().mm(rows))
        else:
            mine.add_(grad.t().mm(rows))


def _chunked(
    rows: torch.Tensor, shard: _Shard, columns: torch.Tensor, here: torch.Tensor, gradients: _Gradients | None
) -> torch.Tensor:
    """Return the sum of all rows' losses, [] fp32, and fill in `gradients`."""
    total = torch.zeros((), dtype=torch.float32, device=rows.device)
    # By the padded width, which is the same on every rank: all must meet in the collectives.
    step = chunk_rows(len(rows), shard.valid + shard.padding, rows.device.type)
    for start in range(0, len(rows), step):
        part = slice(start, min(start + step, len(rows)))
        loss, grad = shard.chunk(rows[part], columns[part], here[part], gradients is not None)
        total += loss
        if gradients is not None:
            gradients.add(part, rows[part], grad, shard.weight)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        group: Group,
        gathers: bool,
        valid: int,
        wants_grad: bool,
    ) -> torch.Tensor:
        whole = group.all_gather(hidden, dim=SEQUENCE_DIM) if gathers else hidden
        rows = whole.flatten(0, -2)
        columns, here = local_targets(targets.flatten(), group.rank * len(weight), valid)
        gradients = _Gradients.empty(rows, weight) if wants_grad else None
        total = _chunked(rows, _Shard(weight, valid, group), columns, here, gradients)
        if gradients is not None:
            gradients.weight[valid:] = 0.0
        ctx.gradients, ctx.group, ctx.gathers = gradients, group, gathers
        ctx.shape, ctx.dtype, ctx.count = whole.shape, weight.dtype, targets.numel()
        return total / targets.numel()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("the fused loss can go backward once for each forward with gradients, but went again")
        ctx.gradients = None
        scale = grads[0].float() / ctx.count
        hidden = gradients.rows.mul_(scale).view(ctx.shape)
        group = ctx.group
        hidden = group.reduce_scatter(hidden, dim=SEQUENCE_DIM) if ctx.gathers else group.all_reduce(hidden)
        weight = gradients.weight.mul_(scale).to(ctx.dtype)
        return hidden, weight, None, None, None, None, None


def vocab_parallel_linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    group: Group,
    vocab_size: int,
    sequence_parallel: bool,
) -> torch.Tensor:
    """Return the mean next-token cross-entropy of the head's logits in nats, [] fp32, the same on every rank.

    The same numbers as a column-parallel linear layer and `vocab_parallel_cross_entropy` behind it, without ever
    holding the logits. With gradients enabled, forward also computes them; it takes one backward.

    Args:
        hidden: `[S, B, H]`, or `[S/tp, B, H]` with sequence parallelism.
        weight: this rank's rows of the head, `[V/tp, H]`.
        labels: token ids, `[B, S]` int64.
        group: tensor-parallel group. Collective: an all-gather of two numbers a row for each chunk in forward, an
            all-reduce of hidden's gradient in backward; with sequence parallelism instead of that an all-gather of
            hidden in forward and a reduce-scatter in backward. No host sync on an accelerator.
        vocab_size: ids that exist; columns above are padding, take no probability and get no gradient.
        sequence_parallel: hidden is a sequence shard.

    Raises:
        ValueError: the shapes of hidden and labels do not belong together.
        DataError: a label is outside [0, vocab_size) (checked on CPU only).
    """
    gathers = sequence_parallel and group.size > 1
    expected = (labels.shape[-1] // (group.size if gathers else 1), labels.shape[0])
    if hidden.ndim != 3 or labels.ndim != 2 or tuple(hidden.shape[:2]) != expected:
        raise ValueError(
            f"hidden must be [S, B, H] (a shard of S with sequence parallelism) for labels [B, S], but they are "
            f"{tuple(hidden.shape)} and {tuple(labels.shape)}"
        )
    check_token_ids(labels, vocab_size)
    width = len(weight)
    valid = min(max(vocab_size - group.rank * width, 0), width)
    targets = labels.transpose(0, 1)
    wants_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    arguments = (hidden, weight, targets, group, gathers, valid, wants_grad)
    return cast(torch.Tensor, _LinearCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]
