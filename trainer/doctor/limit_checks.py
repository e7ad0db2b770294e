"""Limits of this user, job or container: open files, processes, locked memory, asynchronous requests. No torch."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.surroundings import Surroundings
from trainer.machine import task_limit

_FILES_OF_A_RANK = 256
"""Open files of a rank by itself: 79 to 93 were counted in four ranks on CPUs; a GPU's driver takes more."""
_FILES_FOR_A_PEER = 8
"""Connections to another rank: one for each group that both are in, and those of NCCL's channels."""
_GOOD_FILES = 65_536
_THREADS_OF_A_RANK = 64
"""Threads of a rank besides those that compute: 44 were counted in four ranks on CPUs."""
_AIO_REQUESTS = 65_536
_UNLIMITED = resource.RLIM_INFINITY


def look_at_files(around: Surroundings) -> Iterator[Finding]:
    """Find a limit on open files that a rank will reach."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    name, world = "open files", around.world
    needed = _FILES_OF_A_RANK + _FILES_FOR_A_PEER * world
    found = f"a process may have {_shown(soft)} (its user may raise that to {_shown(hard)})"
    aim = _GOOD_FILES if hard == _UNLIMITED else min(hard, _GOOD_FILES)
    raised = f"`ulimit -n {aim}` in the shell that starts the run"
    ask = (
        "`ulimit -n` cannot be raised by this user: put `* - nofile 65536` into /etc/security/limits.conf and log in "
        "again; a container: --ulimit nofile=65536; Slurm: PropagateResourceLimits"
    )
    if soft != _UNLIMITED and soft < needed:
        why = f"a rank among {world:,} may need {needed:,}"
        yield fail(name, f"{found}; {why}", raised if aim >= needed else ask)
    else:
        yield ok(name, found)


def _shown(limit: int) -> str:
    return "any number" if limit == _UNLIMITED else f"{limit:,}"


def look_at_processes(around: Surroundings) -> Iterator[Finding]:
    """Find a limit on processes and threads that the ranks of this machine will reach."""
    name, needed = "processes", around.ranks_here * _THREADS_OF_A_RANK + (os.cpu_count() or 1)
    limits = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    # The kernel lets root have any number.
    if soft != _UNLIMITED and os.geteuid() != 0:
        aim = "unlimited" if hard == _UNLIMITED else str(hard)
        limits.append((soft - _threads_of_user(), f"this user may have {soft:,}", f"`ulimit -u {aim}`"))
    if (group := task_limit(around.root)) is not None:
        most, used = group
        fix = "start the container with --pids-limit=-1 (Kubernetes: podPidsLimit; systemd: TasksMax)"
        limits.append((most - used, f"this container or job may have {most:,}", fix))
    if not limits:
        yield ok(name, "neither the user nor a container limits processes and threads")
        return
    left, who, fix = min(limits)
    found = f"{who} processes and threads, of which {max(left, 0):,} are left"
    if left < needed:
        yield fail(name, f"{found}; {around.ranks_here} ranks may need {needed:,}", fix)
    else:
        yield ok(name, found)


def _threads_of_user() -> int:
    """Return the number of this user's threads, which the limit counts."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.stat().st_uid == os.geteuid():
                count += len(os.listdir(folder / "task"))
    return count


def look_at_locked_memory(around: Surroundings) -> Iterator[Finding]:
    """Find a limit on locked memory where an InfiniBand adapter must reach the memory of ranks."""
    name = "locked memory"
    adapters = sorted(path.name for path in (around.root / "sys/class/infiniband").glob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if not adapters:
        yield skip(name, "there is no InfiniBand adapter, which would need it")
    elif soft != _UNLIMITED:
        fix = (
            "`ulimit -l unlimited`"
            if hard == _UNLIMITED
            else "put `* - memlock unlimited` into /etc/security/limits.conf; a container: --ulimit memlock=-1"
        )
        yield fail(
            name,
            f"a process may lock {soft >> 20} MiB, but NCCL registers memory with {', '.join(adapters)}",
            fix,
        )
    else:
        yield ok(name, f"any amount, for {', '.join(adapters)}")


def look_at_requests(around: Surroundings) -> Iterator[Finding]:
    """Find too few asynchronous requests for offloading to an NVMe disk."""
    name, folder = "asynchronous requests", around.root / "proc/sys/fs"
    if not around.needs_nvme:
        yield skip(name, "zero.offload is not nvme")
        return
    try:
        most, used = (int((folder / file).read_text()) for file in ("aio-max-nr", "aio-nr"))
    except (OSError, ValueError):
        yield skip(name, f"{folder} does not tell of them")
        return
    found = f"{most - used:,} of {most:,} of the kernel's are free"
    if most - used < _AIO_REQUESTS:
        yield warn(name, found, "`sysctl -w fs.aio-max-nr=1048576` as root")
    else:
        yield ok(name, found)


CHECKS = (
    Check("open files", "limits", look_at_files),
    Check("processes", "limits", look_at_processes),
    Check("locked memory", "limits", look_at_locked_memory),
    Check("asynchronous requests", "limits", look_at_requests),
)
"""Checks of this file."""
