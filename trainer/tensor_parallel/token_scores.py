"""Log-probabilities of tokens from logits whose vocabulary is sharded over the tensor-parallel group.

Logits are never gathered. The arithmetic is that of the cross-entropy (`cross_entropy.py`), token by token and without
a way back.
"""

from __future__ import annotations

import torch

from trainer.tensor_parallel.cross_entropy import local_targets
from trainer.topology.groups import Group


def token_scores(
    logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, group: Group, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each target in nats, [m] fp32, and whether it is the likeliest id, [m] bool.

    The same on every rank. Of several likeliest ids the smallest counts. Columns at or above `vocab_size` are padding.

    Args:
        logits: this rank's columns at n positions, `[n, V/tp]`.
        rows: position of each target, [m].
        targets: ids, [m]; several may be of one position.
        group: tensor-parallel group. Collective: two maxima of [n] and a sum of [n + m].
        vocab_size: number of ids that exist.
    """
    first = group.rank * logits.shape[-1]
    valid = min(max(vocab_size - first, 0), logits.shape[-1])
    held = logits[:, :valid].float()
    if valid:
        peak, column = held.max(dim=-1)
    else:
        peak = torch.full(held.shape[:1], -torch.inf, device=logits.device)
        column = torch.zeros_like(peak, dtype=torch.int64)
    whole = group.all_reduce(peak.clone(), op="max")
    # The smallest id is the largest of the negative ones.
    likeliest = -group.all_reduce(torch.where(peak == whole, -(column + first), -vocab_size), op="max")
    shifted = held - whole.unsqueeze(-1)
    columns, here = local_targets(targets, first, valid)
    picked = torch.zeros(len(rows), dtype=torch.float32, device=logits.device)
    if valid:
        picked = shifted[rows, columns].masked_fill(~here, 0.0)
    sums = group.all_reduce(torch.cat([shifted.exp().sum(dim=-1), picked]))
    count = len(held)
    return sums[count:] - sums[:count].log()[rows], likeliest[rows] == targets
