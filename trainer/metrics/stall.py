"""A watch that notices when steps stop ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StallWatch:
    """Calls `on_stall(step, seconds)` once when no `beat` came for `seconds`, and again only after another beat.

    The call comes from a daemon thread of its own: the main one may stand in a collective that never returns.
    """

    def __init__(self, seconds: float, on_stall: Callable[[int, float], None]) -> None:
        self._seconds = seconds
        self._on_stall = on_stall
        self._step = 0
        self._beat_at = time.monotonic()
        self._is_told = False
        self._stop = threading.Event()

    def start(self, step: int) -> None:
        """Start watching, after `step`."""
        self.beat(step)
        threading.Thread(target=self._watch, name="stall-watch", daemon=True).start()

    def beat(self, step: int) -> None:
        """Note that `step` has ended."""
        self._step, self._beat_at, self._is_told = step, time.monotonic(), False

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            silent_s = time.monotonic() - self._beat_at
            if silent_s >= self._seconds and not self._is_told:
                self._is_told = True
                self._on_stall(self._step, silent_s)
