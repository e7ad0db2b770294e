"""The choice of the library that multiplies matrices (GEMM) on this machine's processor."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.config.plan import RunPlan
from trainer.config.schema import CpuMatmul, Dtype
from trainer.errors import ConfigError
from trainer.kernels.gemm import has_onednn

_CPUINFO = Path("/proc/cpuinfo")


def leaves_avx512_to_onednn(cpuinfo: str) -> bool:
    """Return whether a processor, as /proc/cpuinfo describes it, has AVX-512 that MKL does not use."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    fields = {name.strip(): value for name, _, value in lines}
    is_intel = fields.get("vendor_id", "GenuineIntel").strip() == "GenuineIntel"
    return not is_intel and "avx512f" in fields.get("flags", "").split()


def multiplies_by_onednn(plan: RunPlan, device: torch.device) -> bool:
    """Resolve `runtime.cpu_matmul` for this rank. Local.

    Raises:
        ConfigError: oneDNN is asked for, but PyTorch was built without it.
    """
    chosen = plan.config.runtime.cpu_matmul
    if device.type != "cpu" or plan.dtype is not Dtype.fp32 or chosen is CpuMatmul.torch:
        return False
    if chosen is CpuMatmul.onednn and not has_onednn():
        raise ConfigError("runtime.cpu_matmul=onednn needs PyTorch with oneDNN, but this build has none; use torch")
    if chosen is CpuMatmul.onednn:
        return True
    try:
        cpuinfo = _CPUINFO.read_text()
    except OSError:  # not Linux
        return False
    return has_onednn() and leaves_avx512_to_onednn(cpuinfo)
