"""Values that a thread makes before they are asked for, in order. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from trainer.progress import READER

_END_S = 10.0
"""Seconds that the end of a run waits for a value that is being made: a disk may never answer."""
T = TypeVar("T")


class _Made(NamedTuple, Generic[T]):
    values: list[T]
    """One value, or none where there are no more."""
    error: BaseException | None = None


def _nothing() -> None:
    """Do nothing."""


class Prefetch(Generic[T]):
    """An iterator whose values a thread takes from another one, in order.

    At most `ahead` values are made, or being made, and not taken. What the other iterator raises is raised by the
    `next` that would have returned the value, and by each later one. Take values from one thread, and call `close`.

    Args:
        values: used by the thread alone. It goes on behind a value when there is room for the next one.
        ahead: number of values, at least 1.
        begin: called first in the thread.
    """

    def __init__(self, values: Iterator[T], ahead: int, begin: Callable[[], None] = _nothing) -> None:
        self._values = values
        self._begin = begin
        self._room = threading.Semaphore(ahead)
        self._made: SimpleQueue[_Made[T]] = SimpleQueue()
        self._is_closed = False
        # A daemon: a process never outlives its run because a disk does not answer.
        self._thread = threading.Thread(target=self._make, name=READER, daemon=True)
        self._thread.start()

    def _make(self) -> None:
        try:
            self._begin()
            while self._room.acquire() and not self._is_closed:
                self._made.put(_Made([next(self._values)]))
        except StopIteration:
            self._made.put(_Made([]))
        except BaseException as error:
            self._made.put(_Made([], error))

    def __iter__(self) -> Iterator[T]:
        """Return itself."""
        return self

    def __next__(self) -> T:
        """Return the next value, and wait for it if need be.

        Raises:
            StopIteration: there are no more.
        """
        made = self._made.get()
        if made.values:
            self._room.release()
            return made.values[0]
        self._made.put(made)
        raise made.error or StopIteration

    def close(self) -> None:
        """End the thread, whatever it has made. Waits for the value that it is making, though not for long."""
        self._is_closed = True
        self._room.release()
        self._thread.join(_END_S)


@contextmanager
def prefetched(
    values: Iterator[T], ahead: int, begin: Callable[[], None] = _nothing
) -> Generator[Iterator[T], None, None]:
    """Give an iterator whose values are made `ahead` of being asked for; 0: when they are asked for, by the asker."""
    if ahead == 0:
        yield values
        return
    coming = Prefetch(values, ahead, begin)
    try:
        yield coming
    finally:
        coming.close()
