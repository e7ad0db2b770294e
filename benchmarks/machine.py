"""The machine on which a figure was measured: hardware, system, versions, and load."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil

from trainer.versions import versions

_PEERS = ("accelerate", "lightning", "litgpt", "torchtitan", "megatron-core", "liger-kernel")


def machine(site: str | None = None) -> dict[str, Any]:
    """Return the facts of this machine; `site`: folders of further packages, joined as in PYTHONPATH."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {**versions(), **_peer_versions(site)},
        "commit": commit_of(Path(__file__).parent),
    }
    gpus = gpu_names()
    return {**found, "gpus": gpus} if gpus else found


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _peer_versions(site: str | None) -> dict[str, str]:
    path = [*(site or "").split(os.pathsep), *sys.path] if site else sys.path
    found = {}
    for package in _PEERS:
        one = next(iter(distributions(name=package, path=path)), None)
        if one is not None:
            found[package] = one.version
    return found


def commit_of(folder: Path) -> str:
    """Return the revision of a source tree, with `-dirty` where it was changed."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def gpu_names() -> list[str]:
    """Return a line a GPU, as the driver says: so that the parent of a benchmark takes no memory on the device."""
    return _of_gpus("name,memory.total,clocks.sm,clocks.max.sm,power.limit,driver_version", "csv,noheader")


def gpu_memory_bytes() -> int | None:
    """Return the memory of the GPU that has least of it; None without one, or if the driver does not say."""
    lines = _of_gpus("memory.total", "csv,noheader,nounits")
    # A device that shares the host's memory answers [N/A].
    mebibytes = [int(line) for line in lines if line.strip().isdecimal()]
    return min(mebibytes) << 20 if mebibytes else None


def _of_gpus(query: str, form: str) -> list[str]:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", f"--format={form}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except OSError:
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
