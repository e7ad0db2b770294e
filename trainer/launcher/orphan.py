"""A rank that outlives its launcher is asked to stop: nobody else could ask it any more. No torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

_INIT = 1
"""In a container the rank may be the child of process 1 from the start."""


def watch_launcher(on_gone: Callable[[], None], poll_s: float = 1.0) -> threading.Event:
    """Start a daemon thread that calls `on_gone` once when the process that started this one is gone.

    torchrun and the deepspeed launcher die at once of a signal that they do not know, such as SIGUSR1, and of SIGKILL.
    Their ranks would train on with nobody to hear of it. Set the returned event to stop watching.
    """
    stop = threading.Event()
    launcher = os.getppid()

    def watch() -> None:
        while not stop.wait(poll_s):
            if os.getppid() != launcher:
                on_gone()
                return

    if launcher != _INIT:
        threading.Thread(target=watch, name="launcher-watch", daemon=True).start()
    return stop
