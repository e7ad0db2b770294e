"""Numbers of a model that foreign trainers reckon in the same way. No torch."""

from __future__ import annotations

import math

from trainer.errors import ConfigError
from trainer.migration.draft import Draft


def rounded(number: float) -> float:
    """Return a derived number without the noise of its last digits."""
    return float(f"{number:.10g}")


def padded(size: int, multiple: int) -> int:
    """Return a vocabulary's size with its padding."""
    return -(-size // max(1, multiple)) * max(1, multiple)


def head_dim_of(draft: Draft, hidden: int, heads: int, *names: str) -> int:
    """Return the size of a head.

    Raises:
        ConfigError: sizes are not positive, or heads do not divide the width.
    """
    told = draft.origin(*names) or "the sizes of the model"
    if hidden < 1 or heads < 1:
        raise ConfigError(f"{told} must be at least 1, but are {hidden} and {heads}")
    if hidden % heads:
        raise ConfigError(f"{told}: the width ({hidden}) must be divisible by the heads ({heads})")
    return hidden // heads


def put_dims_of_rope(draft: Draft, head_dim: int, share: float, *names: str) -> None:
    """Set the elements of a head that are rotated, from their share.

    Raises:
        ConfigError: the share is none.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"{draft.origin(*names)} must be greater than 0 and at most 1, but is {share:g}")
    dims = int(head_dim * share)
    if dims != head_dim:
        draft.put("model.rope_dims", dims, *names)


def small_init(hidden: int) -> float:
    """Return the standard deviation of initial weights by width (arXiv 1910.05895, section 2.2)."""
    return math.sqrt(2 / (5 * hidden))
