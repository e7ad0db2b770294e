"""Peak memory use of this rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

GIB = 1024.0**3
STATUS = Path("/proc/self/status")
"""Sizes of this process."""
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_PEAK = "5"
"""Sets the peak of resident memory back to what is resident now: proc(5)."""


def resident_bytes() -> int:
    """Return this process's resident memory, without pages of files."""
    status = sizes_in(STATUS)
    return status["VmRSS"] - status["RssFile"]


def peak_bytes() -> int:
    """Return the largest resident memory since `forget_peak`, without the pages of files that are resident now."""
    status = sizes_in(STATUS)
    return status["VmHWM"] - status["RssFile"]


def forget_peak() -> bool:
    """Let the kernel count the peak of resident memory anew; return whether it does."""
    try:
        _CLEAR.write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True


def sizes_in(file: Path) -> dict[str, int]:
    """Return the sizes in a file of lines `name: number kB` of the kernel's, in bytes."""
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) << 10 for words in lines if len(words) == 3 and words[2] == "kB"}


@dataclass(frozen=True)
class MemoryPeaks:
    """Highest use since the run began, of one rank or of the fullest one."""

    allocated_gib: float
    """CUDA: held by tensors. CPU: resident memory of the process."""
    reserved_gib: float
    """CUDA: held by torch's allocator. CPU: resident memory of the process."""
    used_gib: float
    """Memory that a prediction is held against. CUDA: held by torch's allocator, and what of the device is in use
    besides at the moment of the reading: contexts, communicators, other processes. CPU: growth of the process's
    resident memory since the meter was made, without files that it reads through its address space."""


class MemoryMeter:
    """Watches this rank's memory, from the moment on in which it is made: before the engine is.

    Args:
        device: the device on which this rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._peak_rss_bytes = self._peak_growth_bytes = 0
        self._forgets = forget_peak()
        self._before_bytes = resident_bytes()

    def sample(self) -> None:
        """Sample the memory of this process; on CUDA torch keeps the peak itself. Local, no device sync."""
        if self._device.type != "cuda":
            self._peak_rss_bytes = max(self._peak_rss_bytes, self._process.memory_info().rss)

    def growth_bytes(self) -> int:
        """Return how much the resident memory of this process has grown since the meter was made, files left out."""
        return resident_bytes() - self._before_bytes

    def peaks(self) -> MemoryPeaks:
        """Return this rank's peaks. Local, no device sync."""
        self.sample()
        if self._device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self._device)
            reserved = torch.cuda.max_memory_reserved(self._device)
            free, total = torch.cuda.mem_get_info(self._device)
            used = reserved + max(0, total - free - torch.cuda.memory_reserved(self._device))
        else:
            allocated = reserved = self._peak_rss_bytes
            growth = peak_bytes() - self._before_bytes if self._forgets else self.growth_bytes()
            # Pages of files may take the place of others later: their growth must not hide a peak.
            used = self._peak_growth_bytes = max(self._peak_growth_bytes, growth)
        return MemoryPeaks(allocated_gib=allocated / GIB, reserved_gib=reserved / GIB, used_gib=used / GIB)
