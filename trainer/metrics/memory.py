"""Peak memory use of this rank."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

GIB = 1024.0**3


@dataclass(frozen=True)
class MemoryPeaks:
    """Highest use since the run began, of one rank or of the fullest one."""

    allocated_gib: float
    """CUDA: held by tensors. CPU: resident memory of the process."""
    reserved_gib: float
    """CUDA: held by torch's allocator. CPU: resident memory of the process."""
    used_gib: float
    """CUDA: held by torch's allocator, and what of the device is in use besides at the moment of the reading: contexts,
    communicators, other processes. CPU: resident memory of the process. This is what a prediction is held against."""


class MemoryMeter:
    """Watches this rank's memory.

    Args:
        device: the device on which this rank computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._peak_rss_bytes = 0

    def sample(self) -> None:
        """Sample the memory of this process; on CUDA torch keeps the peak itself. Local, no device sync."""
        if self._device.type != "cuda":
            self._peak_rss_bytes = max(self._peak_rss_bytes, self._process.memory_info().rss)

    def peaks(self) -> MemoryPeaks:
        """Return this rank's peaks. Local, no device sync."""
        self.sample()
        if self._device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self._device)
            reserved = torch.cuda.max_memory_reserved(self._device)
            free, total = torch.cuda.mem_get_info(self._device)
            used = reserved + max(0, total - free - torch.cuda.memory_reserved(self._device))
        else:
            allocated = reserved = used = self._peak_rss_bytes
        return MemoryPeaks(allocated_gib=allocated / GIB, reserved_gib=reserved / GIB, used_gib=used / GIB)
