"""Ranks agree on errors, so that all of them stop at the same place and one of them says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from trainer.errors import TridentError
from trainer.topology.groups import DistGroup

T = TypeVar("T")


def together(control: DistGroup, action: Callable[[], T]) -> T:
    """Run `action` on every rank; if it failed anywhere, raise the lowest failing rank's error everywhere.

    Collective over `control` (a host-side group). Errors that are not `TridentError` are raised where they happened,
    and as a `TridentError` naming the rank elsewhere.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
    errors: list[Exception | None] = [None] * control.size
    dist.all_gather_object(errors, _portable(error, control.rank), group=control.process_group)
    first = next((found for found in errors if found is not None), None)
    if first is None:
        return result  # type: ignore[return-value]
    if error is not None and not isinstance(error, TridentError):
        raise error
    raise first


def _portable(error: Exception | None, rank: int) -> Exception | None:
    if error is None or isinstance(error, TridentError):
        return error
    return TridentError(f"rank {rank} failed: {type(error).__name__}: {error}")
