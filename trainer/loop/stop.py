"""The request to stop: a signal sets a flag, and all ranks agree on the step after which they end."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import torch

from trainer.errors import PeerLostError
from trainer.topology.groups import Finish, Group

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopRequest:
    """Collects requests to stop on every rank and turns them into one decision for all.

    Signals reach the ranks at different moments, maybe only one rank. So each step's end starts a one-element
    max-all-reduce of the flags over `control`, and the end of the next step reads it: no rank waits for another,
    no device is touched, and the price is that the run ends one step later.

    Args:
        control: a group on CPU over the whole world.
        repeat_s: a second Ctrl-C within this time is taken for a launcher that hands on the first one.
    """

    def __init__(self, control: Group, repeat_s: float = 1.0) -> None:
        self._control = control
        self._repeat_s = repeat_s
        self._requested = False
        self._interrupted_at: float | None = None
        self._answer: Finish | None = None
        self._previous: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """True if this rank was asked to stop. Local."""
        return self._requested

    def request(self) -> None:
        """Ask for a stop, as a signal does. Local."""
        self._requested = True

    def install(self) -> None:
        """Listen to SIGTERM, SIGINT, SIGUSR1 and SIGHUP. Does nothing outside the main thread, where Python cannot.

        Before that, and after `uninstall`, such a signal ends the process at once (`trainer.interruption`).
        """
        if threading.current_thread() is not threading.main_thread() or self._previous:
            return
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                # nohup: the terminal may go.
                continue
            self._previous[number] = signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        """Put back the handlers that `install` replaced."""
        while self._previous:
            number, handler = self._previous.popitem()
            # A handler that was not set from Python reads as None and cannot be put back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]

    def __enter__(self) -> StopRequest:
        """Install the handlers."""
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        """Uninstall the handlers."""
        self.uninstall()

    def agreed(self) -> bool:
        """Return whether all ranks end now. Every rank calls it once at the end of a step and gets the same answer.

        Collective over `control` (asynchronous max-all-reduce); no device sync. With one rank the answer is
        immediate, otherwise it comes at the end of the step after the request.

        Raises:
            PeerLostError: a rank died.
        """
        if self._control.size == 1:
            return self._requested
        decided = self.drain()
        if not decided:
            self._start()
        return decided

    def drain(self) -> bool:
        """Finish the exchange under way, if any, and return its decision. Collective with the last `agreed`.

        Raises:
            PeerLostError: a rank died.
        """
        if self._answer is None:
            return False
        answer, self._answer = self._answer, None
        try:
            return bool(answer().item())
        except RuntimeError as error:
            raise _lost(error) from error

    def _start(self) -> None:
        try:
            self._answer = self._control.start_all_reduce(torch.tensor([float(self._requested)]), op="max")
        except RuntimeError as error:
            raise _lost(error) from error

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._requested = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is not None and now - self._interrupted_at >= self._repeat_s:
            raise KeyboardInterrupt
        if self._interrupted_at is None:
            self._interrupted_at = now


def _lost(error: RuntimeError) -> PeerLostError:
    return PeerLostError(f"every rank must answer at the end of a step, but one is lost: {error}")
