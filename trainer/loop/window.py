"""Measurements between two reports: losses still on the device, and the division of the time."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainer.engine.face import StepResult


@dataclass(frozen=True)
class WindowReading:
    """A window, read by the host. Times are means over its steps."""

    loss: float
    """Loss of the window's last step."""
    grad_norm: float
    steps: int
    step_ms: float
    data_wait_ms: float
    seconds: float
    """Wall time spent in the steps of the window."""
    percentiles_ms: tuple[float, float, float]
    """Step time that 50, 95 and 99 percent of the last `PERCENTILE_STEPS` steps did not exceed."""


PERCENTILE_STEPS = 200
"""Number of steps that percentiles are taken of, however far apart reports are: ten steps have no 99th percentile."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` of them do not exceed (the nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class StepWindow:
    """Collects steps until the next report.

    The clock runs only inside a step, so that hooks, checkpoints and evaluations do not count as step time.
    """

    def __init__(self) -> None:
        self._unread: list[torch.Tensor] = []
        self._losses: list[float] = []
        self._grad_norm: torch.Tensor | None = None
        self._seconds = 0.0
        self._data_seconds = 0.0
        self._step_started = 0.0
        self._last_steps: deque[float] = deque(maxlen=PERCENTILE_STEPS)

    def start_step(self) -> None:
        """Start the clock."""
        self._step_started = time.perf_counter()

    def data_arrived(self) -> None:
        """Note that everything since `start_step` was waiting for data."""
        self._data_seconds += time.perf_counter() - self._step_started

    def add(self, result: StepResult) -> None:
        """Keep the step's results, which are still on the device. No host sync."""
        # A copy: an engine may reuse the buffer at its next step.
        self._unread.append(result.loss.detach().clone())
        self._grad_norm = result.grad_norm

    def stop_step(self) -> None:
        """Stop the clock."""
        seconds = time.perf_counter() - self._step_started
        self._seconds += seconds
        self._last_steps.append(seconds)

    def read(self) -> tuple[tuple[float, ...], float]:
        """Return the losses so far and the last gradient norm. Syncs the host with the device.

        Call it before `stop_step`: the device's work was queued by the steps, so waiting for it is step time.
        """
        assert self._grad_norm is not None, "a window must hold a step before it is read"
        if self._unread:
            self._losses += torch.stack(self._unread).tolist()
            self._unread.clear()
        return tuple(self._losses), float(self._grad_norm)

    def close(self) -> WindowReading:
        """Return the means of the window, whose last step has stopped, and begin an empty one."""
        losses, grad_norm = self.read()
        steps = len(losses)
        reading = WindowReading(
            loss=losses[-1],
            grad_norm=grad_norm,
            steps=steps,
            step_ms=1000 * self._seconds / steps,
            data_wait_ms=1000 * self._data_seconds / steps,
            seconds=self._seconds,
            percentiles_ms=(self._percentile(0.5), self._percentile(0.95), self._percentile(0.99)),
        )
        self._losses.clear()
        self._grad_norm = None
        self._seconds = self._data_seconds = 0.0
        return reading

    def _percentile(self, share: float) -> float:
        return 1000 * percentile(self._last_steps, share)
