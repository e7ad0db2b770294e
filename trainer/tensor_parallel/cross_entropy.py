"""Cross-entropy over logits whose vocabulary is sharded over the tensor-parallel group. Logits are never gathered.

Source: Megatron-LM, arXiv 1909.08053, section 3 (fusing the output GEMM's shards with the loss).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel.token_ids import check_labels
from trainer.topology.groups import Group

CHUNK_ELEMENTS = 1 << 24
"""Number of logits that are held in fp32 at a time (64 MiB); it bounds the temporaries of forward and backward."""


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    """Yield slices over S that hold at most CHUNK_ELEMENTS logits each (at least one position)."""
    length = logits.shape[0]
    width = max(1, logits[0].numel())
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def local_targets(targets: torch.Tensor, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (column on this rank, clamped; true if the target is on this rank)."""
    local = targets - first
    here = (local >= 0) & (local < count)
    return local.clamp(0, max(0, count - 1)), here


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, batch: MicroBatch, group: Group, first: int, valid: int
    ) -> torch.Tensor:
        targets, weights = batch.targets().transpose(0, 1), batch.token_weights().transpose(0, 1)
        shape = targets.shape
        peak = torch.full(shape, -torch.inf, dtype=torch.float32, device=logits.device)
        if valid:
            peak = logits[..., :valid].amax(dim=-1).float()
        group.all_reduce(peak, op="max")
        # One collective for both sums.
        sums = torch.zeros((2, *shape), dtype=torch.float32, device=logits.device)
        columns, here = local_targets(targets, first, valid)
        if valid:
            for part in _chunks(logits):
                # Promotes to fp32 in one pass; always a new tensor, so that exp_ leaves the logits alone.
                shifted = logits[part, :, :valid] - peak[part].unsqueeze(-1)
                picked = shifted.gather(-1, columns[part].unsqueeze(-1)).squeeze(-1)
                sums[1, part] = picked.masked_fill(~here[part], 0.0)
                sums[0, part] = shifted.exp_().sum(dim=-1)
        group.all_reduce(sums)
        log_sum = sums[0].log()
        ctx.divisor = batch.loss_divisor()
        ctx.save_for_backward(logits, targets, weights, peak.add_(log_sum))
        ctx.first, ctx.valid = first, valid
        losses = (log_sum - sums[1]).mul_(weights)
        if batch.losses is not None:
            batch.losses.add(losses.flatten())
        total: torch.Tensor = losses.sum()
        return total.div_(ctx.divisor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        logits, targets, weights, normaliser = ctx.saved_tensors
        valid: int = ctx.valid
        scale = (weights * (grads[0].float() / ctx.divisor)).unsqueeze(-1)
        grad = torch.empty_like(logits)
        grad[..., valid:] = 0.0
        columns, here = local_targets(targets, ctx.first, valid)
        if valid:
            for part in _chunks(logits):
                # softmax - one-hot, recomputed: keeps no fp32 copy of the logits between the passes.
                chunk = (logits[part, :, :valid] - normaliser[part].unsqueeze(-1)).exp_()
                one = here[part].to(torch.float32).neg_().unsqueeze(-1)
                chunk.scatter_add_(-1, columns[part].unsqueeze(-1), one)
                grad[part, :, :valid] = chunk.mul_(scale[part])
        return grad, None, None, None, None


def vocab_parallel_cross_entropy(
    logits: torch.Tensor, batch: MicroBatch, group: Group, vocab_size: int
) -> torch.Tensor:
    """Return the micro-batch's next-token cross-entropy in nats, [] fp32, the same on every rank of the group.

    It is the sum over its tokens, each times its weight, divided by `MicroBatch.loss_divisor`. Columns at or above
    `vocab_size` are padding: they take no probability and get no gradient.

    Args:
        logits: this rank's columns, `[S, B, V/tp]`, any float dtype.
        batch: its labels are token ids or `IGNORED`, `[B, S]`.
        group: tensor-parallel group. Collective in forward (a max and a sum of `[S, B]`), not in backward. No host
            sync on an accelerator.
        vocab_size: number of ids that exist.

    Raises:
        ValueError: the shapes of logits and labels do not belong together.
        DataError: a label is outside [0, vocab_size), or a weight is negative or not finite (checked on CPU only).
    """
    labels = batch.targets()
    if logits.ndim != 3 or logits.shape[:2] != (labels.shape[1], labels.shape[0]):
        raise ValueError(
            f"logits must be [S, B, V/tp] for labels [B, S], but are {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    check_labels(labels, vocab_size)
    width = logits.shape[-1]
    first = group.rank * width
    valid = min(max(vocab_size - first, 0), width)
    loss = _VocabParallelCrossEntropy.apply(logits, batch, group, first, valid)  # type: ignore[no-untyped-call]
    return cast(torch.Tensor, loss)
