"""Ranks agree on errors, so that all of them stop at the same place and one of them says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

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
    failed = [rank for rank, found in enumerate(errors) if found is not None]
    if not failed:
        return result  # type: ignore[return-value]
    if error is not None and (failed[0] == control.rank or not isinstance(error, TridentError)):
        # Not its copy, which has lost traceback and cause on the way.
        raise error
    first = errors[failed[0]]
    assert first is not None
    raise first


def _portable(error: Exception | None, rank: int) -> Exception | None:
    if error is None or isinstance(error, TridentError):
        return error
    return TridentError(f"rank {rank} failed: {type(error).__name__}: {error}")


def gather(control: DistGroup, value: T) -> list[T]:
    """Return every rank's value, in rank order, on every rank. Collective over `control`."""
    values: list[T | None] = [None] * control.size
    dist.all_gather_object(values, value, group=control.process_group)
    return cast(list[T], values)


def same_everywhere(control: DistGroup, value: object) -> bool:
    """Return whether every rank passes an equal value; the same answer on all. Collective over `control`."""
    values = gather(control, value)
    return all(other == values[0] for other in values)
