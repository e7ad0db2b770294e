"""The processors and memory that control groups let this process use. No torch.

A container, a Kubernetes pod, a Slurm step and a systemd unit are limited by control groups (cgroups), which neither
the number of processors nor the size of memory shows. Both versions of them are read, with every group above this
process's own: the tightest limit counts. A limit that cannot be read does not count.
"""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Return the number of processors that this process can keep busy without being throttled; at least 1.

    That is the number it may run on (affinity, cpuset), or its quota of processor time if that is less. A quota is
    rounded to the nearest number: ranks wait for one another, so one that is throttled delays all.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.floor(quota + 0.5)))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Return the processors' worth of time that control groups grant, or None for no limit."""
    found = [quota for folder in _folders("cpu", root) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def cpu_seconds(root: Path = _ROOT) -> float | None:
    """Return the processor time used so far by the group whose quota counts, or None if there is none."""
    folders = list(_folders("cpu", root))
    limited = [(quota, index) for index, folder in enumerate(folders) if (quota := _quota(folder)) is not None]
    if not limited:
        return None
    _, index = min(limited)
    used_us = _fields(folders[index] / "cpu.stat").get("usage_usec")
    if used_us is not None:
        return used_us / 1e6
    # Version 1 counts in another hierarchy, which may be mounted elsewhere.
    counting = list(_folders("cpuacct", root))
    used_ns = _number(counting[index] / "cpuacct.usage") if index < len(counting) else None
    return None if used_ns is None else used_ns / 1e9


@dataclass(frozen=True)
class MemoryLimit:
    """The tightest memory limit of this process's control groups."""

    limit_bytes: int
    used_bytes: int | None
    """Bytes that the group uses, without those that the kernel can drop; None if it does not tell."""

    @property
    def limit_gib(self) -> float:
        """The limit in GiB."""
        return self.limit_bytes / (1 << 30)


def memory_limit(root: Path = _ROOT) -> MemoryLimit | None:
    """Return the limit below the machine's memory, or None if there is none."""
    total = _fields(root / "proc/meminfo").get("MemTotal:", 1 << 50) << 10
    found = [
        (limit, folder)
        for folder in _folders("memory", root)
        if (limit := _first(folder, "memory.max", "memory.limit_in_bytes")) is not None and limit < total
    ]
    if not found:
        return None
    limit, folder = min(found)
    used = _first(folder, "memory.current", "memory.usage_in_bytes")
    kept = _fields(folder / "memory.stat")
    droppable = kept.get("total_inactive_file", kept.get("inactive_file", 0))
    return MemoryLimit(limit, None if used is None else max(0, used - droppable))


def memory_size(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process may use: the limit's, or the machine's; None if nothing tells."""
    limit = memory_limit(root)
    if limit is not None:
        return limit.limit_bytes
    total = _fields(root / "proc/meminfo").get("MemTotal:")
    return None if total is None else total << 10


def task_limit(root: Path = _ROOT) -> tuple[int, int] | None:
    """Return the limit on processes and threads that is reached first, and how many there are; None for no limit."""
    found = [
        (most, used)
        for folder in _folders("pids", root)
        if (most := _number(folder / "pids.max")) is not None and (used := _number(folder / "pids.current")) is not None
    ]
    return min(found, key=lambda pair: pair[0] - pair[1], default=None)


class OomKills:
    """The kernel's kills for want of memory since this object was made.

    Args:
        root: folder that holds /proc and /sys.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._before = self._counts()

    def is_ours(self) -> bool:
        """Return whether such a kill was counted in this process's own control group."""
        return self._counts()[0] > self._before[0]

    def hint(self) -> str | None:
        """Return a line that reports such a kill and names the limit, or None."""
        own, machine = (now - before for now, before in zip(self._counts(), self._before, strict=True))
        if own <= 0 and machine <= 0:
            return None
        limit = memory_limit(self._root)
        whose = "this container or job" if own > 0 and limit is not None else "this machine"
        size = "" if limit is None or own <= 0 else f", whose limit is {limit.limit_gib:.3g} GiB"
        certainty = "" if own > 0 else ", perhaps one of another run"
        return (
            f"the kernel has killed a process for the memory of {whose}{size}{certainty}; give it more, start fewer "
            "ranks, or lower batch.micro_batch_size"
        )

    def _counts(self) -> tuple[int, int]:
        own = next(iter(_folders("memory", self._root)), None)
        events = {} if own is None else _fields(own / "memory.events") or _fields(own / "memory.oom_control")
        return events.get("oom_kill", 0), _fields(self._root / "proc/vmstat").get("oom_kill", 0)


SHARED_MEMORY_BYTES_A_RANK = 64 << 20
"""NCCL's segments in /dev/shm for a rank with seven peers, 9 MiB each. Docker gives 64 MiB to all ranks together."""


def shared_memory_problem(ranks: int, folder: Path = Path("/dev/shm")) -> str | None:
    """Return the problem with the shared memory that NCCL uses between the ranks of this machine, or None.

    Args:
        ranks: number of ranks on this machine, each with a GPU.
        folder: its mount point.
    """
    if ranks < 2:
        return None
    needed = ranks * SHARED_MEMORY_BYTES_A_RANK
    try:
        found = os.statvfs(folder)
        size = found.f_frsize * found.f_blocks
    except OSError:
        size = 0
    if size >= needed:
        return None
    return (
        f"{folder} should have {needed >> 20} MiB for {ranks} ranks that talk through NCCL, but has {size >> 20} MiB; "
        "start the container with --shm-size=1g or --ipc=host (Kubernetes: mount an emptyDir of medium Memory there)"
    )


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups for a controller, the innermost first."""
    path = _group(controller, root)
    mount = _mount(controller if path and path[1] else None, root)
    if path is None or mount is None:
        return
    top, place = mount
    group = path[0]
    # Without a namespace of its own a container sees its group as the top of the mount, but its whole path in /proc.
    inside = group.removeprefix(top.rstrip("/")) if (group + "/").startswith(top.rstrip("/") + "/") else ""
    names = [name for name in inside.split("/") if name]
    if ".." in names:
        names = []
    folder = root / place.lstrip("/")
    for depth in range(len(names), -1, -1):
        yield folder.joinpath(*names[:depth])


def _group(controller: str, root: Path) -> tuple[str, bool] | None:
    """Return the path of this process's group, and whether the controller has a hierarchy of its own (version 1)."""
    unified = None
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path, True
        if not controllers:
            unified = path
    return None if unified is None else (unified, False)


def _mount(controller: str | None, root: Path) -> tuple[str, str] | None:
    """Return the top and the mount point of a hierarchy: a controller's own, or that of version 2."""
    for line in _lines(root / "proc/self/mountinfo"):
        first, _, second = line.partition(" - ")
        fields, kind = first.split(), second.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        is_it = kind[0] == "cgroup2" if controller is None else kind[0] == "cgroup" and controller in kind[2].split(",")
        if is_it:
            return _unescaped(fields[3]), _unescaped(fields[4])
    return None


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _quota(folder: Path) -> float | None:
    words = next(iter(_lines(folder / "cpu.max")), "").split()
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _first(folder: Path, *names: str) -> int | None:
    return next((number for name in names if (number := _number(folder / name)) is not None), None)


def _number(path: Path) -> int | None:
    """Return the number that a file holds; None for `max`, -1 and what cannot be read."""
    text = next(iter(_lines(path)), "").strip()
    return int(text) if text.isdecimal() else None


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file of `name number` lines."""
    words = (line.split() for line in _lines(path))
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def this_machine() -> str:
    """Return a text that tells this machine since its last start, and this container on it, from others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()
