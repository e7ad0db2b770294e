"""Times one kernel: warm-up, repeats, median. On a GPU by its own events, so that no launch is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Stopwatch:
    """Numbers of runs before and during a measurement."""

    device: torch.device
    warmup: int
    repeats: int

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the median time of one call of `work`."""
        for _ in range(self.warmup):
            work()
        return median(self._on_gpu(work) if self.device.type == "cuda" else self._on_cpu(work))

    def _on_cpu(self, work: Callable[[], object]) -> list[float]:
        found = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
        return found

    def _on_gpu(self, work: Callable[[], object]) -> list[float]:
        event: Any = torch.cuda.Event
        pairs = [[event(enable_timing=True) for _ in range(2)] for _ in range(self.repeats)]
        for start, end in pairs:
            start.record()
            work()
            end.record()
        torch.cuda.synchronize(self.device)
        return [float(start.elapsed_time(end)) / 1e3 for start, end in pairs]
