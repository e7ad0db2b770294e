"""The part of the config schema that says how processes run and are started. Part of `schema.py`.

A string literal under a field is its documentation: meaning, unit, range, what it interacts with.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DeviceKind(Enum):
    """Where the ranks compute. `auto`: CUDA if the machine has it, otherwise CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class CpuMatmul(Enum):
    """Which library multiplies matrices in fp32 on a CPU. Their results differ in the last bits.

    `torch`: what PyTorch takes, on x86 MKL. `onednn`: oneDNN. `auto`: oneDNN on processors with AVX-512 that are not
    Intel's, where MKL does not use it; otherwise what PyTorch takes.
    """

    auto = "auto"
    torch = "torch"
    onednn = "onednn"


PROFILE_AFTER_STEPS = 4
"""Steps that a start of a run trains before the recorded ones: the first ones are not like the rest."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How a process runs."""

    device: DeviceKind = DeviceKind.auto
    """auto | cpu | cuda."""
    threads_per_rank: int | None = None
    """CPU threads of one rank. null: cores / ranks on this machine, at least 1. A container's or job's limit of
    processors counts as so many cores (docs/docker.md)."""
    cpu_matmul: CpuMatmul = CpuMatmul.auto
    """auto | torch | onednn. Which library multiplies matrices in fp32 on a CPU; their last bits differ. auto: oneDNN
    on processors with AVX-512 that are not Intel's, since MKL, which PyTorch takes, does not use it there. In half
    precision PyTorch takes oneDNN anyway."""
    timeout_s: int = 1800
    """Seconds after which a collective that does not finish is an error. So long a rank also waits for the others to
    join, and may stand still in a phase before the loop; compiling or preparing data may take longer while it works."""
    hang_timeout_s: int | None = None
    """Seconds without progress after which the run ends (exit code 7) and says which rank is behind, in what; saving
    may take timeout_s. null: a third of timeout_s. 0: never."""
    compile: bool = False
    """Compile the blocks, and what the fused loss does with logits, with torch.compile. Not with zero.stage=3 (its
    hooks break every program) or dropout (its masks differ from block to block). With tensor parallelism programs end
    at each collective. On a CPU it was measured to be no faster (docs/performance.md)."""
    liger: bool = False
    """Norms and SwiGLU by the Triton kernels of liger-kernel (extra `liger`). On a GPU, and not with runtime.compile,
    which makes such kernels by itself. No speed was measured yet."""
    check_replicas_every: int = 0
    """Steps between comparisons of the weights that several ranks hold alike; where they differ, the run ends (exit
    code 5). 0: never."""
    recheck_every: int = 0
    """Steps between checks that every rank computes the same bits twice: one fixed micro-batch goes forward two times,
    and each layer's result is compared. Where they differ, the run ends (exit code 5) and names rank, host and layer.
    0: never."""
    straggler_factor: float | None = None
    """A rank is named in a warning when its own computing, or its wait for data, takes this many times as long as that
    of ranks with the same work, in three reports in a row. 0: never. null: 1.5 on GPUs, never on CPUs, where ranks that
    share a machine take each other's time."""
    profile: bool = False
    """Record some steps with torch's profiler: traces and a table of where the time went, in profile/ of the run's
    folder (docs/profiling.md). Recorded steps are slower, and so is the row of metrics that holds them."""
    profile_first_step: int | None = None
    """First recorded step, counted as in metrics.jsonl. null: the fifth that this start of the run trains."""
    profile_steps: int = 3
    """How many steps are recorded, 1 to 20."""
    profile_ranks: tuple[int, ...] = ()
    """Ranks that record. Empty: the first one of each pipeline stage."""


@dataclass(frozen=True)
class LaunchConfig:
    """How ranks are started when no launcher is around."""

    master_port: int | None = None
    """Rendezvous port. null: a free one."""
    max_restarts: int = 0
    """Times that ranks started here are started again after a crash or a lost rank, from the newest checkpoint."""
    restart_backoff_s: float = 5.0
    """Seconds before the first restart; doubled for each further one, up to 300."""
    grace_s: int = 10
    """Seconds that surviving ranks get to end after one died."""
