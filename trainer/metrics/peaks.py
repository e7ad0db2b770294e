"""Peak speed of known devices, for model FLOPs utilisation."""

from __future__ import annotations

from trainer.config.schema import Dtype
from trainer.devices import of_driver


def peak_flops_per_second(device_name: str | None, dtype: Dtype) -> float | None:
    """Return a device's dense peak in FLOP/s for matrix multiplication (GEMM) in `dtype`.

    None if it is not known: on CPU (`device_name` is None), on a device that is not in the table, and for a
    format that the device has no unit for. A made-up peak would make a made-up utilisation.

    Args:
        device_name: as `torch.cuda.get_device_name` spells it, e.g. `NVIDIA H100 80GB HBM3`.
        dtype: compute precision.
    """
    device = None if device_name is None else of_driver(device_name)
    if device is None:
        return None
    tflops = {Dtype.bf16: device.peak.bf16, Dtype.fp16: device.peak.fp16, Dtype.fp32: device.peak.fp32}[dtype]
    return None if tflops is None else 1e12 * tflops
