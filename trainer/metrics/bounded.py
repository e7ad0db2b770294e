"""Calls that must not take longer than a given time, whatever the network does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Outcome(Generic[T]):
    """Result of a call: a value or a failure."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self.error: BaseException | None = None


def bounded(call: Callable[[], T], seconds: float) -> T:
    """Return `call()`, or give up after `seconds`.

    The call runs in a daemon thread, which is left behind when time is up and cannot hold up the process's end.

    Raises:
        TimeoutError: the call did not return in time.
        RuntimeError: the call asked the process to exit.
        Exception: the error that the call raised.
    """
    outcome: _Outcome[T] = _Outcome()

    def work() -> None:
        try:
            outcome.values.append(call())
        except BaseException as error:
            outcome.error = error

    thread = threading.Thread(target=work, name="trident-bounded", daemon=True)
    thread.start()
    thread.join(seconds)
    if outcome.values:
        return outcome.values[0]
    if outcome.error is None:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if isinstance(outcome.error, Exception):
        raise outcome.error
    raise RuntimeError(f"the call ended with {type(outcome.error).__name__}: {outcome.error}")
