"""How much memory the fullest rank has used."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from trainer.topology.groups import Group

_GIB = 1024.0**3


@dataclass(frozen=True)
class MemoryPeaks:
    """Highest use since the run began, of the rank that used most."""

    allocated_gib: float
    """CUDA: held by tensors. CPU: resident memory of the process."""
    reserved_gib: float
    """CUDA: held by torch's allocator. CPU: resident memory of the process."""


class MemoryMeter:
    """Watches this rank's memory and compares it with the others'.

    Args:
        device: where this rank computes.
        control: a group on CPU over the whole world.
    """

    def __init__(self, device: torch.device, control: Group) -> None:
        self._device = device
        self._control = control
        self._process = psutil.Process()
        self._peak_rss_bytes = 0

    def sample(self) -> None:
        """Look at the memory of this process; on CUDA torch keeps the peak itself. Local, no device sync."""
        if self._device.type != "cuda":
            self._peak_rss_bytes = max(self._peak_rss_bytes, self._process.memory_info().rss)

    def measure(self) -> MemoryPeaks:
        """Return the peaks of the fullest rank. Collective over `control` (max-all-reduce on CPU); no device sync."""
        self.sample()
        if self._device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self._device)
            reserved = torch.cuda.max_memory_reserved(self._device)
        else:
            allocated = reserved = self._peak_rss_bytes
        peaks = torch.tensor([allocated / _GIB, reserved / _GIB], dtype=torch.float64)
        allocated_gib, reserved_gib = self._control.all_reduce(peaks, op="max").tolist()
        return MemoryPeaks(allocated_gib=allocated_gib, reserved_gib=reserved_gib)
