"""A call that hangs until the test is over, so that a test can see who waits for it without looking at a clock."""

from __future__ import annotations

import threading


class Hang:
    """Called with anything, it does not return before `let_go`, or two minutes.

    A caller that gives up comes back while `has_returned` is still false; one that waits comes back when it is true.
    """

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self.has_returned = False

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Hang."""
        self._is_over.wait(120)
        self.has_returned = True

    def let_go(self) -> None:
        """Let every call return."""
        self._is_over.set()
