"""The part of the config schema that says how processes run and are started. Part of `schema.py`.

A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DeviceKind(Enum):
    """Device on which the ranks compute. `auto`: CUDA if the machine has it, otherwise CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class CpuMatmul(Enum):
    """Library that multiplies fp32 matrices (GEMM) on a CPU. The results of the libraries differ in the last bits.

    `torch`: the one that PyTorch chooses, which is MKL on x86. `onednn`: oneDNN. `auto`: oneDNN on processors with
    AVX-512 that are not Intel's, where MKL does not use it; otherwise the one that PyTorch chooses.
    """

    auto = "auto"
    torch = "torch"
    onednn = "onednn"


PROFILE_AFTER_STEPS = 4
"""Steps that a run trains after each start before recording begins: the first ones are unlike the rest."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Settings of the running processes."""

    device: DeviceKind = DeviceKind.auto
    """auto | cpu | cuda."""
    threads_per_rank: int | None = None
    """Number of CPU threads of one rank. null: cores / ranks on this machine, at least 1. A limit on processors that a
    container or job sets counts as that many cores (docs/docker.md)."""
    cpu_matmul: CpuMatmul = CpuMatmul.auto
    """auto | torch | onednn. In half precision PyTorch always uses oneDNN."""
    timeout_s: int = 1800
    """Seconds after which a collective that does not finish is an error. A rank also waits this long for the others to
    join, and may stand still this long in a phase before the loop; compiling and preparing data may take longer, as
    long as they progress."""
    hang_timeout_s: int | None = None
    """Seconds without progress after which the run ends (exit code 7) and says which rank is behind, and in what;
    saving may take timeout_s. null: a third of timeout_s. 0: never."""
    compile: bool = False
    """Compile the blocks, and the arithmetic on logits in the fused loss, with torch.compile. Not possible with
    zero.stage=3 (its hooks break every program) or dropout (its masks differ from block to block). With tensor
    parallelism programs end at each collective. On a CPU it was measured to be no faster (docs/performance.md)."""
    liger: bool = False
    """Compute norms and SwiGLU with the Triton kernels of liger-kernel (extra `liger`). Only on a GPU, and not with
    runtime.compile, which makes such kernels by itself. No speed was measured yet."""
    check_replicas_every: int = 0
    """Number of steps between comparisons of the weights that several ranks hold copies of; where copies differ, the
    run ends (exit code 5). 0: never."""
    recheck_every: int = 0
    """Number of steps between checks that every rank computes the same bits twice: one fixed micro-batch goes forward
    two times, and each layer's output is compared. Where two outputs differ, the run ends (exit code 5) and names rank,
    host and layer. 0: never."""
    self_test: bool = False
    """Before its first step the run trains a small model of the same structure in its own layout, schedule, ZeRO stage
    and precision, for two steps, and compares with plain PyTorch (docs/proving.md): it takes some seconds at each
    start. If they differ, it ends (exit code 1) and names tensor and axis."""
    straggler_factor: float | None = None
    """A rank is named in a warning when its own computing, or its wait for data, takes this many times as long as that
    of the ranks with the same work, in three reports in a row. 0: never. null: 1.5 on GPUs, never on CPUs, where ranks
    that share a machine take each other's time."""
    profile: bool = False
    """Record some steps with torch's profiler: traces and a table of where the time went, in profile/ of the run's
    folder (docs/profiling.md). Recorded steps are slower, and so is the row of metrics that covers them."""
    profile_first_step: int | None = None
    """First recorded step, counted as in metrics.jsonl. null: the fifth step after this start of the run."""
    profile_steps: int = 3
    """Number of recorded steps, 1 to 20."""
    profile_ranks: tuple[int, ...] = ()
    """Ranks that record. Empty: the first rank of each pipeline stage."""


@dataclass(frozen=True)
class LaunchConfig:
    """Start of the ranks when no launcher has started them."""

    master_port: int | None = None
    """Port of the rendezvous. null: a free one."""
    max_restarts: int = 0
    """Number of times that ranks started here are started again after a crash or a lost rank, from the newest
    checkpoint."""
    restart_backoff_s: float = 5.0
    """Seconds before the first restart; doubled for each further one, up to 300."""
    grace_s: int = 10
    """Seconds that the surviving ranks get to end after one has died."""
