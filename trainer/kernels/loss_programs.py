"""The fused loss's arithmetic on a chunk of logits, as programs of torch.compile: each reads the logits once.

Kernel by kernel, softmax in fp32, its log, the one-hot and the cast read and write a chunk's logits half a dozen times,
which on a GPU takes as long as the head's GEMMs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

LOWEST = -1e30
"""Logit of a target on another rank: finite, so that no difference is NaN."""


@dataclass(frozen=True)
class LossPrograms:
    """The two halves, between which tensor-parallel ranks combine their sums."""

    sums: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """Takes logits [rows, V], columns of the targets [rows] and whether they are here [rows]: see `logit_sums`."""
    gradient: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """Takes these and the log of the whole sum [rows] fp32: see `logit_gradient`."""


def logit_sums(logits: torch.Tensor, columns: torch.Tensor, here: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log of each row's sum of exp(logit), and the target's logit or `LOWEST`; both [rows] fp32."""
    picked = logits.gather(-1, columns.unsqueeze(-1)).squeeze(-1).float()
    return logits.float().logsumexp(dim=-1), torch.where(here, picked, LOWEST)


def logit_gradient(
    logits: torch.Tensor, columns: torch.Tensor, here: torch.Tensor, log_sum: torch.Tensor
) -> torch.Tensor:
    """Return softmax - one-hot in the logits' dtype, [rows, V]."""
    ids = torch.arange(logits.shape[-1], device=logits.device)
    one_hot = (ids == columns.unsqueeze(-1)) & here.unsqueeze(-1)
    probability = (logits.float() - log_sum.unsqueeze(-1)).exp()
    return torch.where(one_hot, probability - 1.0, probability).to(logits.dtype)


@cache
def compiled_loss() -> LossPrograms:
    """Return the programs, which are compiled at their first call for each number of rows."""
    return LossPrograms(torch.compile(logit_sums, dynamic=False), torch.compile(logit_gradient, dynamic=False))
