"""State of a node: processors, memory, network, GPUs. Read by one rank of each node; no collectives.

If a control group limits processors or memory, as in a container, the group's own use is reported.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import psutil

from trainer.machine import cpu_quota, cpu_seconds, memory_limit
from trainer.metrics.bounded import bounded
from trainer.metrics.memory import GIB

MIB = 1024.0**2
EVERY_S = 5.0
"""Seconds between readings: a shorter span would show the moment rather than the run."""
_GPU_S = 2.0
"""Seconds to wait for a GPU driver: one that is in trouble may not answer at all."""

NODE_NAMES = (
    "cpu_percent",
    "memory_used_gib",
    "network_sent_mib_per_s",
    "network_received_mib_per_s",
    "gpu_utilization_percent",
    "gpu_memory_used_gib",
    "gpu_power_w",
    "gpu_temperature_c",
)
"""Names of a node's values, in order. GPUs: mean utilization and total power; memory and temperature of the highest."""


class NodeMeter:
    """Reads this node, at most every `EVERY_S` seconds. Values that cannot be read are left out; reading cannot hang.

    Args:
        with_gpus: read NVIDIA GPUs through NVML, where the package nvidia-ml-py is installed.
        clock: returns seconds.
    """

    def __init__(self, with_gpus: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._with_gpus = with_gpus
        self._read_at = -math.inf
        self._traffic_at = clock()
        self._traffic = _traffic()
        # The first call has nothing to compare with.
        _try(psutil.cpu_percent)
        self._cpu_at = clock()
        self._cpu_s = cpu_seconds()

    def read(self) -> Mapping[str, float]:
        """Return names of `NODE_NAMES` -> values; nothing if it is too early. Local."""
        now = self._clock()
        if now - self._read_at < EVERY_S:
            return {}
        self._read_at = now
        found = {"cpu_percent": self._cpu_percent(now), "memory_used_gib": _try(_memory_used_gib)}
        found |= self._network(now)
        if self._with_gpus:
            found |= self._gpus()
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def _cpu_percent(self, now: float) -> float | None:
        """Return the share of the processors in use; in a container with a quota, the share of the quota."""
        quota, before, after = cpu_quota(), self._cpu_s, cpu_seconds()
        seconds = max(now - self._cpu_at, 1e-3)
        self._cpu_at, self._cpu_s = now, after
        if quota is None or before is None or after is None:
            return _try(psutil.cpu_percent)
        return 100.0 * (after - before) / seconds / quota

    def _network(self, now: float) -> dict[str, float | None]:
        before, after = self._traffic, _traffic()
        seconds = max(now - self._traffic_at, 1e-3)
        self._traffic, self._traffic_at = after, now
        if before is None or after is None:
            return {}
        sent, received = ((b - a) / MIB / seconds for a, b in zip(before, after, strict=True))
        return {"network_sent_mib_per_s": max(0.0, sent), "network_received_mib_per_s": max(0.0, received)}

    def _gpus(self) -> dict[str, float]:
        try:
            return bounded(_read_gpus, _GPU_S)
        # If NVML raises anything or does not answer, it is not asked again.
        except Exception:
            self._with_gpus = False
            return {}


def _try(call: Callable[[], float]) -> float | None:
    """Return `call()`, or None if the system does not tell, as in some containers."""
    try:
        return float(call())
    except (OSError, RuntimeError, psutil.Error):
        return None


def _memory_used_gib() -> float:
    limited = memory_limit()
    if limited is not None and limited.used_bytes is not None:
        return limited.used_bytes / GIB
    memory = psutil.virtual_memory()
    return float(memory.total - memory.available) / GIB


def _traffic() -> tuple[float, float] | None:
    """Return bytes sent and received by all interfaces but the loopback."""
    try:
        interfaces = psutil.net_io_counters(pernic=True)
    except (OSError, RuntimeError, psutil.Error):
        return None
    others = [counters for name, counters in interfaces.items() if name != "lo"]
    return float(sum(c.bytes_sent for c in others)), float(sum(c.bytes_recv for c in others))


def _read_gpus() -> dict[str, float]:
    import pynvml

    pynvml.nvmlInit()
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {
            "gpu_utilization_percent": sum(pynvml.nvmlDeviceGetUtilizationRates(d).gpu for d in devices) / len(devices),
            "gpu_memory_used_gib": max(pynvml.nvmlDeviceGetMemoryInfo(d).used for d in devices) / GIB,
            "gpu_power_w": sum(pynvml.nvmlDeviceGetPowerUsage(d) for d in devices) / 1000.0,
            "gpu_temperature_c": float(max(pynvml.nvmlDeviceGetTemperature(d, 0) for d in devices)),
        }
    finally:
        pynvml.nvmlShutdown()
