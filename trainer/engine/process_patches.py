"""Every function of DeepSpeed (and of what it uses) that is replaced for the whole process: here and nowhere else.

Other faults are repaired by subclasses (ADR 0002), which leave DeepSpeed as it is for other code in the process. Each
of these has no other way in. All are idempotent, and none changes a number.
"""

from __future__ import annotations

from functools import cache

import torch.utils.cpp_extension

from trainer.engine.kernel_lock import KernelLock


def let_starts_not_wait_for_compilers() -> None:
    """Take a kernel out of DeepSpeed's list, and replace torch's lock around compilations.

    Building DeepSpeed's shared-memory collectives would make every first start on a CPU wait for a compiler. What
    torch's own class does with the lock of a killed compilation is to wait for ever.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.utils.cpp_extension.FileBaton = KernelLock  # type: ignore[assignment,attr-defined]


def let_cpus_compute_fp16() -> None:
    """Answer yes where DeepSpeed asks whether the processor has instructions for fp16: PyTorch needs none, slowly."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def ask_for_the_processor_once() -> None:
    """Remember the answer that DeepSpeed asks for again and again: each time processes are started to find it."""
    import cpuinfo

    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)
