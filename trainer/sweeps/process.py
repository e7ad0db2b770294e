"""One run of a sweep, in a process of its own. No torch."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType

from trainer.errors import Preempted
from trainer.interruption import INTERRUPTED
from trainer.launcher.start import python_environment
from trainer.sweeps.runs import SweptRun

_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def train(run: SweptRun) -> int:
    """Train, and return the exit code as a shell says it. Signals are handed on to the run."""
    child = subprocess.Popen([sys.executable, "-m", "trainer", "train", *run.words], env=python_environment())

    def hand_on(number: int, _: FrameType | None) -> None:
        if child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in _HANDED_ON}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def was_asked_to_stop(code: int) -> bool:
    """Return whether the run ended because somebody asked it to, and the sweep with it."""
    return code in (Preempted.exit_code, INTERRUPTED)
