"""Ranks agree on errors, so that all of them stop at the same place and one of them says why."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeVar

from trainer.errors import ConfigError, TridentError
from trainer.topology.groups import Group

T = TypeVar("T")


def together(control: Group, action: Callable[[], T], is_of_machine: bool = False) -> T:
    """Run `action` on every rank; if it failed anywhere, raise the lowest failing rank's error everywhere.

    Collective over `control` (a host-side group). Errors that are not `TridentError` are raised where they happened,
    and as a `TridentError` naming the rank elsewhere.

    Args:
        control: the ranks.
        action: the function that each of them runs.
        is_of_machine: true if it depends on the machine, so that an error says on which, unless it is rank 0's.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = _with_place(caught, control.rank) if is_of_machine and control.rank > 0 else caught
    errors = control.gather_objects(_portable(error, control.rank))
    failed = [rank for rank, found in enumerate(errors) if found is not None]
    if not failed:
        return result  # type: ignore[return-value]
    if error is not None and (failed[0] == control.rank or not isinstance(error, TridentError)):
        # The original is raised, not its copy, which has lost traceback and cause on the way.
        raise error
    first = errors[failed[0]]
    assert first is not None
    raise first


def _with_place(error: Exception, rank: int) -> Exception:
    if not isinstance(error, TridentError):
        return error
    place = f"rank {rank} ({socket.gethostname()})"
    problems = [f"{place}: {problem}" for problem in error.problems]
    if isinstance(error, ConfigError):
        found: TridentError = type(error)(problems, error.hints)
    else:
        found = type(error)(problems[0], error.hints)
    found.__cause__ = error
    return found


def _portable(error: Exception | None, rank: int) -> Exception | None:
    if error is None or isinstance(error, TridentError):
        return error
    return TridentError(f"rank {rank} failed: {type(error).__name__}: {error}")


def gather(control: Group, value: T) -> list[T]:
    """Return every rank's value, in rank order, on every rank. Collective over `control`."""
    return control.gather_objects(value)
