"""Peak speed of known devices, for model FLOPs utilisation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.config.schema import Dtype


@dataclass(frozen=True)
class _Peak:
    """Dense TFLOP/s, fp32 accumulation, no sparsity; None: the device has no such unit."""

    bf16: float | None
    fp16: float | None
    fp32: float
    """Plain fp32 (not TF32): what torch computes unless told otherwise."""


def _half(tensor: float, fp32: float) -> _Peak:
    return _Peak(bf16=tensor, fp16=tensor, fp32=fp32)


# Searched in order: a variant stands before the family it belongs to. Numbers: the vendor's data sheets.
_PEAKS: tuple[tuple[str, _Peak], ...] = (
    (r"\bGB[23]00\b", _half(2500.0, 80.0)),
    (r"\bB[23]00\b", _half(2250.0, 75.0)),
    (r"\bGH200\b", _half(989.4, 66.9)),
    (r"\bH200 NVL\b", _half(835.5, 60.3)),
    (r"\bH200\b", _half(989.4, 66.9)),
    (r"\bH100 PCIe\b", _half(756.4, 51.2)),
    (r"\bH100 NVL\b", _half(835.5, 60.3)),
    (r"\bH[18]00\b", _half(989.4, 66.9)),
    (r"\bH20\b", _half(148.0, 44.0)),
    (r"\bA[18]00\b", _half(311.9, 19.5)),
    (r"\bA40\b", _half(149.7, 37.4)),
    (r"\bA30\b", _half(165.2, 10.3)),
    (r"\bA10\b", _half(125.0, 31.2)),
    (r"\bRTX A6000\b", _half(154.8, 38.7)),
    (r"\bRTX 6000 Ada\b", _half(364.2, 91.1)),
    (r"\bL40S\b", _half(362.1, 91.6)),
    (r"\bL40\b", _half(181.1, 90.5)),
    (r"\bL4\b", _half(121.0, 30.3)),
    (r"\bRTX 5090\b(?! Laptop| D)", _half(209.5, 104.8)),
    (r"\bRTX 4090\b(?! Laptop| D)", _half(165.2, 82.6)),
    (r"\bRTX 3090\b(?! Ti)", _half(71.0, 35.6)),
    (r"\bV100.*PCIE\b", _Peak(bf16=None, fp16=112.0, fp32=14.0)),
    (r"\bV100\b", _Peak(bf16=None, fp16=125.0, fp32=15.7)),
    (r"\bT4\b", _Peak(bf16=None, fp16=65.0, fp32=8.1)),
)


def peak_flops_per_second(device_name: str | None, dtype: Dtype) -> float | None:
    """Return a device's dense peak in FLOP/s for matrix multiplication (GEMM) in `dtype`.

    None if it is not known: on CPU (`device_name` is None), on a device that is not in the table, and for a
    format that the device has no unit for. A made-up peak would make a made-up utilisation.

    Args:
        device_name: as `torch.cuda.get_device_name` spells it, e.g. `NVIDIA H100 80GB HBM3`.
        dtype: compute precision.
    """
    if device_name is None:
        return None
    for pattern, peak in _PEAKS:
        # A MIG slice has the name of the whole device and a part of its speed.
        if re.search(pattern, device_name, re.IGNORECASE) and "MIG" not in device_name:
            tflops = {Dtype.bf16: peak.bf16, Dtype.fp16: peak.fp16, Dtype.fp32: peak.fp32}[dtype]
            return None if tflops is None else 1e12 * tflops
    return None
