"""The time that a rank computes by itself, without waits: it tells a slow rank from one that waits for it.

In a step every rank takes as long as the slowest, because all meet in collectives. The first forward pass of a step has
only the collectives of the tensor-parallel group, and the waits for these are subtracted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.topology.groups import Group
from trainer.topology.watch import Listener

_Mark = float | torch.cuda.Event
MOST_SPANS = 10_000
"""Spans kept between two calls of `take`: if reports are far apart, the later steps are not measured."""


class OwnTime(Listener):
    """A clock for the first forward pass of each step; a `Listener` of the tensor-parallel group.

    On CUDA it records events and reads them in `take` alone, so that no step waits for the device.

    Args:
        device: the device on which this rank computes.
        tensor: its tensor-parallel group; listened to as long as this object lives.
    """

    def __init__(self, device: torch.device, tensor: Group) -> None:
        self._is_cuda = device.type == "cuda"
        self._spans: list[tuple[_Mark, _Mark, int]] = []
        """Begin, end and sign: +1 for a pass, -1 for a wait in it."""
        self._is_armed = self._is_running = False
        self._waits_since: _Mark | None = None
        self._passes = 0
        tensor.watch.listener = self

    def begin_step(self) -> None:
        """Let the next forward pass be measured."""
        self._is_armed = len(self._spans) < MOST_SPANS

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the forward pass inside, if it is the first one since `begin_step`. Local; no sync."""
        if not self._is_armed:
            yield
            return
        self._is_armed = False
        begun = self._now()
        self._is_running = True
        try:
            yield
        finally:
            self._is_running = False
        self._spans.append((begun, self._now(), 1))
        self._passes += 1

    def take(self) -> float:
        """Return the mean seconds of the passes since the last call, NaN for none. Local; syncs with a CUDA device."""
        total = sum(sign * self._seconds(begun, ended) for begun, ended, sign in self._spans)
        passes, self._passes = self._passes, 0
        self._spans.clear()
        return total / passes if passes else math.nan

    def waits(self) -> None:
        """Note the beginning of a wait."""
        if self._is_running:
            self._waits_since = self._now()

    def received(self, tensor: torch.Tensor) -> None:
        """Note the end of a wait."""
        if self._is_running and self._waits_since is not None:
            self._spans.append((self._waits_since, self._now(), -1))
            self._waits_since = None

    def _now(self) -> _Mark:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @staticmethod
    def _seconds(begun: _Mark, ended: _Mark) -> float:
        if isinstance(begun, torch.cuda.Event):
            assert isinstance(ended, torch.cuda.Event)
            ended.synchronize()
            return float(begun.elapsed_time(ended)) / 1e3
        assert isinstance(ended, float)
        return ended - begun
