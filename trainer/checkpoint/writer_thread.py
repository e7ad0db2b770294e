"""A piece of work that a thread does while the run trains on. No torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class BackgroundWork:
    """Runs `action` once in a thread of its own, from now on.

    The thread is a daemon: a process that must end, for example because a peer died, does not wait for it.
    """

    def __init__(self, action: Callable[[], None], name: str) -> None:
        self._action = action
        self._error: BaseException | None = None
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            self._action()
        except BaseException as error:
            self._error = error
        self._seconds = time.perf_counter() - started

    def done(self) -> bool:
        """Return whether the work has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, but not longer than `timeout_s`; return whether it came."""
        self._thread.join(timeout_s)
        return self.done()

    def result(self) -> float:
        """Wait for the end and return how many seconds the work took.

        Raises:
            BaseException: the error that the work raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._seconds
