"""The worker's side of a benchmark: runs steps when it is told to, takes the time, and answers.

A contender calls `open` when it is ready to train and `done` after every step; both block while it is another's turn.
That serves plain loops as well as trainers that own their loop and offer a callback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from benchmarks.meter import PeakMeter


class Finished(BaseException):
    """Ends a contender's loop, whoever owns it. No Exception, so that no trainer catches it."""


class Gate:
    """Turns are counted in optimizer steps.

    Args:
        requests: one JSON object a line: `{"turn": steps}` or `{"stop": true}`.
        answers: where answers go.
        synchronize: waits until the device has done what was queued.
        meter: of this process's memory; a contender starts it anew where its own building begins.
    """

    def __init__(self, requests: TextIO, answers: TextIO, synchronize: Callable[[], None], meter: PeakMeter) -> None:
        self._requests = requests
        self._answers = answers
        self._synchronize = synchronize
        self.meter = meter
        self._left = 0
        self._losses: list[Any] = []
        self._started = self._cpu_started = 0.0
        self.extras: Callable[[], Mapping[str, Any]] = dict
        """Returns further values that are reported at the end of a turn."""

    def answer(self, **values: Any) -> None:
        """Send one answer."""
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    def open(self, **facts: Any) -> None:
        """Say that everything is built, and wait for the first turn.

        Raises:
            Finished: there is none.
        """
        self.answer(ready=facts)
        self._next_turn()

    def done(self, losses: Sequence[Any]) -> None:
        """Count steps that are done; at the end of the turn answer and wait for the next one.

        Args:
            losses: one a step, numbers or tensors of one element; read when the clock has stopped.

        Raises:
            Finished: there is no further turn.
        """
        self._losses += losses
        self._left -= len(losses)
        if self._left > 0:
            return
        self._synchronize()
        seconds = time.perf_counter() - self._started
        cpu_seconds = time.process_time() - self._cpu_started
        extras = {"cpu_seconds": round(cpu_seconds, 4), "peak_bytes": self.meter.peak_bytes(), **self.extras()}
        losses = [float(loss) for loss in self._losses]
        self.answer(turn={"seconds": seconds, "losses": losses, **extras})
        self._losses.clear()
        self._next_turn()

    def _next_turn(self) -> None:
        request = json.loads(self._requests.readline() or '{"stop": true}')
        if "turn" not in request:
            raise Finished
        self._left = int(request["turn"])
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
