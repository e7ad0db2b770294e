"""All functions of DeepSpeed, and of the libraries it uses, that are replaced for the whole process.

Other faults are repaired by subclasses (ADR 0002), which leave DeepSpeed as it is for other code in the process. Each
of these has no other way in. All are idempotent, and none changes a number.
"""

from __future__ import annotations

from functools import cache

import torch.utils.cpp_extension

from trainer.engine.kernel_lock import KernelLock


def let_starts_not_wait_for_compilers() -> None:
    """Take a kernel out of DeepSpeed's list, and replace torch's lock around compilations.

    Building DeepSpeed's shared-memory collectives would make every first start on a CPU wait for a compiler. torch's
    own class waits for ever for the lock of a killed compilation.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.utils.cpp_extension.FileBaton = KernelLock  # type: ignore[assignment,attr-defined]


def let_cpus_compute_fp16() -> None:
    """Answer yes if DeepSpeed asks whether the processor has instructions for fp16: PyTorch needs none, but is slow."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def ask_for_the_processor_once() -> None:
    """Remember an answer that DeepSpeed asks for again and again: finding it starts processes each time."""
    import cpuinfo

    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = cache(cpuinfo.get_cpu_info)
