"""Work that every rank of this machine would do by itself, done once in the process that they are forked from."""

from __future__ import annotations

import atexit
import gc
import os
from functools import cache


@cache
def warm_up(compiles: bool = True) -> None:
    """Import and prepare once, before the first fork, what every rank on a CPU would do again.

    Args:
        compiles: load DeepSpeed's CPU kernel of AdamW too, which is compiled the first time.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch

    # A forked child cannot use the parent's thread pool.
    torch.set_num_threads(1)
    import deepspeed

    # Every ZeRO optimizer looks at it, and its decorators of torch.compile take a quarter of a second.
    import deepspeed.runtime.zero.muon.muon_optimizer
    import torch._dynamo
    import torch._inductor.compile_fx
    from deepspeed.ops.op_builder import CPUAdamBuilder

    import trainer.engine.build  # noqa: F401
    from trainer.engine.process_patches import ask_for_the_processor_once

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if compiles:
        # Loading the compiled kernel asks the compiler for its version.
        CPUAdamBuilder().load(verbose=False)
    # Each optimizer starts a process to ask for the processor's name.
    ask_for_the_processor_once()
    import cpuinfo

    cpuinfo.get_cpu_info()
    # What is imported stays; collecting garbage in a rank need not look at it.
    gc.freeze()
    # At the end it must: Triton lists what it thinks was leaked.
    atexit.register(gc.unfreeze)
