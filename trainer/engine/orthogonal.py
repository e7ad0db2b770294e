"""The nearest matrix with equal singular values, by Newton-Schulz iterations: what Muon steps by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic whose iteration brings singular values of a normalised matrix to about 1 (K. Jordan and
others, Muon: an optimizer for hidden layers in neural networks, 2024)."""
_SMALLEST = 1e-7
_RMS = 0.2
"""Root mean square of the elements of AdamW's updates (arXiv 2502.16982, section 2.2)."""


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Return U V^T of a matrix U S V^T [rows, columns], its singular values about 0.7 to 1.2. fp32 throughout.

    X <- a X + (b A + c A A) X with A = X X^T, on the side on which A is smaller.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + _SMALLEST)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def muon_update(matrix: torch.Tensor, sections: Sequence[int]) -> torch.Tensor:
    """Return the update of a whole tensor [rows, columns], whose sections of rows are matrices of their own.

    Each is orthogonalised, and scaled by 0.2 sqrt(max(rows, columns)): its elements are then as large as those of
    AdamW's updates, and both can have one learning rate and weight decay (arXiv 2502.16982, equation 4).
    """
    parts = torch.split(matrix, list(sections))
    return torch.cat([orthogonalised(part) * (_RMS * math.sqrt(max(part.shape))) for part in parts])
