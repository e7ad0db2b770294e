"""A thread for calls that training must not wait for: it makes them in order, as long as they succeed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

_POLL_S = 0.02


class Background:
    """Runs calls in a daemon thread, which cannot hold up the process's end.

    After the first failure no further call is made; `failure` holds it.

    Args:
        name: name of the thread.
        most: largest number of waiting calls; one more is a failure, because memory is finite.
    """

    def __init__(self, name: str, most: int = 1000) -> None:
        self._name = name
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue(most)
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    @property
    def failure(self) -> Exception | None:
        """The first failure, if there was one."""
        return self._failure

    def submit(self, call: Callable[[], object]) -> None:
        """Make `call` after those before it. Returns at once; several threads may call it."""
        if self._failure is not None:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._failure = TimeoutError(f"{self._calls.maxsize} calls wait for one that does not return")
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()

    def finish(self, seconds: float) -> None:
        """Wait at most `seconds` until every call so far was made; one that is not made by then becomes the failure."""
        done = threading.Event()
        self.submit(done.set)
        end = time.monotonic() + seconds
        # In short waits: after a failure the event is never set.
        while self._failure is None and not done.wait(_POLL_S):
            if time.monotonic() >= end:
                self._failure = TimeoutError(f"no answer within {seconds:g} s")

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if self._failure is not None:
                continue
            try:
                call()
            except Exception as error:
                self._failure = error
            except BaseException as error:
                self._failure = RuntimeError(f"the call ended with {type(error).__name__}: {error}")
