"""A rank that runs out of memory says what held it, when, and what change would fit."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trainer.config.plan import RunPlan
from trainer.engine.face import Engine
from trainer.errors import OutOfMemoryError, first_line
from trainer.machine import memory_limit
from trainer.metrics.memory import STATUS, MemoryMeter, sizes_in
from trainer.planner.foresee import account_of_killed
from trainer.planner.post_mortem import Held, PostMortem, moment_of
from trainer.progress import current
from trainer.topology.groups import ParallelGroups

_ON_HOST = ("DefaultCPUAllocator: ", "Cannot allocate memory", "std::bad_alloc")
"""Words of torch's allocator, of the system and of C++ for memory of the host that was refused."""
_ON_DEVICE = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "HIP out of memory")
_REFUSED = re.compile(r"[Tt]ried to allocate (\d+(?:\.\d+)?) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_MEMINFO = Path("/proc/meminfo")

Explain = Callable[[RunPlan, int, str, Held, bool], PostMortem]
"""Returns the post-mortem of a rank: (plan, rank, moment, what it held, whether that is the host's beside a GPU)."""


def is_on_device(error: BaseException) -> bool:
    """Return whether memory of the device was refused."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _ON_DEVICE)


def is_on_host(error: BaseException) -> bool:
    """Return whether memory of the host was refused."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or any(words in str(error) for words in _ON_HOST)


def refused_bytes(error: BaseException) -> int:
    """Return the bytes that an allocator was asked for and refused; 0 if it does not say."""
    found = _REFUSED.search(str(error))
    return 0 if found is None else round(float(found[1]) * _UNITS[found[2]])


class MemoryWatch:
    """The facts about this rank's memory that a post-mortem needs, as far as they are known by now.

    Args:
        groups: this rank's place.
        explain: makes the post-mortem.
    """

    def __init__(self, groups: ParallelGroups, explain: Explain) -> None:
        self._groups = groups
        self._explain = explain
        self._plan: RunPlan | None = None
        self.meter: MemoryMeter | None = None
        """Looks at this rank's memory from `begin` on."""
        self.engine: Engine | None = None
        """This rank's, once it is built."""

    def begin(self, plan: RunPlan) -> None:
        """Begin to look at the memory, before an engine is built. Local."""
        self._plan = plan
        self.meter = MemoryMeter(self._groups.device)

    def of_killed(self, rank: int) -> tuple[Sequence[str], Sequence[str]]:
        """Return what another rank, which was killed for its memory, was predicted to need, and what would fit."""
        if self._plan is None:
            return (), ()
        return account_of_killed(self._plan, rank)

    def in_our_words(self, error: BaseException) -> BaseException:
        """Return the error that a person is told: of want of memory a post-mortem, others as they are. Local."""
        if isinstance(error, OutOfMemoryError):
            return error
        if is_on_device(error):
            message = f"the model must fit into device memory, but: {_first_line(error)}"
            return self._told(error, message, _FOR_DEVICE)
        if is_on_host(error):
            limited = memory_limit()
            size = "" if limited is None else f", of which this container or job may have {limited.limit_gib:.3g} GiB"
            message = f"the model must fit into host memory{size}, but: {_first_line(error)}"
            return self._told(error, message, _FOR_HOST)
        return error

    def _told(self, error: BaseException, message: str, hints: Sequence[str]) -> OutOfMemoryError:
        if self._plan is None or self.meter is None:
            return OutOfMemoryError(message, hints)
        # Whatever goes wrong here must not hide that memory ran out.
        try:
            is_on_host = self._groups.device.type == "cuda" and not is_on_device(error)
            held = self._held(self.meter, error, is_on_host)
            found = self._explain(self._plan, self._groups.rank, moment_of(current()), held, is_on_host)
        except Exception as later:
            return OutOfMemoryError(message, hints, [_cannot_tell(later)])
        return OutOfMemoryError(message, [*found.hints, *hints], found.lines)

    def _held(self, meter: MemoryMeter, error: BaseException, is_on_host: bool) -> Held:
        device = self._groups.device
        if is_on_host:
            now = meter.growth_bytes()
            return Held(now, now + _left_bytes(), refused_bytes(error))
        tensors = {} if self.engine is None else self.engine.held_bytes()
        total = round(meter.peaks().used_gib * (1 << 30))
        if device.type != "cuda":
            limit = max(total, meter.growth_bytes() + _left_bytes())
            return Held(total, limit, refused_bytes(error), 0, tuple(tensors.items()))
        free, size = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        outside = max(0, size - free - reserved)
        allowed = round(size * torch.cuda.get_per_process_memory_fraction(device))
        limit = min(allowed, reserved + free) + outside
        return Held(total, limit, refused_bytes(error), outside, tuple(tensors.items()))


def _cannot_tell(error: Exception) -> str:
    return f"what held the memory cannot be told: {type(error).__name__}: {error}"


def _first_line(error: BaseException) -> str:
    """Return the first line of the reason, without the place in torch's source."""
    return first_line(RuntimeError(str(error).rpartition("DefaultCPUAllocator: ")[2] or "an allocation failed"))


def _left_bytes() -> int:
    """Return the bytes that this process could still get from its machine, by its tightest limit."""
    status, machine = sizes_in(STATUS), sizes_in(_MEMINFO)
    left = [machine["MemAvailable"]]
    for kind, size in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            left.append(soft - status[size])
    limited = memory_limit()
    if limited is not None and limited.used_bytes is not None:
        left.append(limited.limit_bytes - limited.used_bytes)
    return max(0, min(left))


_FOR_HOST = (
    "start fewer ranks on this machine, or lower batch.micro_batch_size",
    "set model.recompute=full, or raise layout.tensor_parallel_size or layout.pipeline_parallel_size",
    "raise the limit of the container, the job or the shell (ulimit -v)",
)
_FOR_DEVICE = (
    "set model.recompute=full, or lower batch.micro_batch_size",
    "raise layout.tensor_parallel_size or layout.pipeline_parallel_size",
    "set zero.offload=cpu",
)
