"""Peak memory of one process, above what it held when it began to build; and what tensors alone took at most."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Value that sets VmHWM back to VmRSS when it is written (proc(5))."""


class PeakMeter:
    """CUDA: what tensors hold, as torch's allocator counts. CPU: resident memory, without the pages of files.

    A library's code becomes resident when it first runs; that is no memory of the model, and is taken off.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._base = self._files = 0

    @property
    def base_bytes(self) -> int:
        """What was held at `start`."""
        return self._base * (1 if self._device == "cuda" else 1024)

    def start(self) -> None:
        """Count from here."""
        if self._device == "cuda":
            import torch

            index = int(os.environ.get("LOCAL_RANK", "0"))
            torch.cuda.reset_peak_memory_stats(index)
            self._base = torch.cuda.memory_allocated(index)
            return
        self.forget_peak()
        now = _kibibytes()
        self._base, self._files = now.get("VmRSS", 0), now.get("RssFile", 0)

    def forget_peak(self) -> None:
        """Look for the highest use from here on; what `start` found stays what it is held against."""
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(int(os.environ.get("LOCAL_RANK", "0")))
            return
        # Where that is refused the peak includes that of the imports, which a model soon exceeds.
        with suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)

    def peak_bytes(self) -> int:
        """Return the highest use since `start` or `forget_peak`, above that at `start`."""
        if self._device == "cuda":
            import torch

            index = int(os.environ.get("LOCAL_RANK", "0"))
            return int(torch.cuda.max_memory_allocated(index)) - self._base
        now = _kibibytes()
        return 1024 * (now.get("VmHWM", 0) - self._base - max(0, now.get("RssFile", 0) - self._files))


def peak_of_tensors(work: Callable[[], object], device: str) -> int:
    """Return the bytes that tensors made by `work` held at most, without what libraries and the heap keep beside them.

    On a CPU torch's profiler counts them, which slows `work` down.
    """
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return int(torch.cuda.max_memory_allocated()) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    results = profile.profiler.kineto_results
    held = peak = 0
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _kibibytes() -> dict[str, int]:
    fields = (line.split() for line in _STATUS.read_text().splitlines())
    return {field[0].rstrip(":"): int(field[1]) for field in fields if len(field) == 3 and field[2] == "kB"}
