"""The hardware of this machine: its GPUs as their driver names them, its processor, its memory. No torch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.machine import memory_size, usable_cores

_ROOT = Path("/")
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total,memory.reserved", "--format=csv,noheader,nounits")
_MIB = 1 << 20
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use."""

    name: str
    """The driver's name; empty if it is not known."""
    memory_bytes: int | None = None
    """Its memory without what the driver keeps; None if it is not known."""


@dataclass(frozen=True)
class Processor:
    """The processor of a machine, as far as /proc/cpuinfo describes it."""

    flags: frozenset[str] = frozenset()
    """Instruction sets."""
    ghz: float | None = None
    threads_per_core: float = 1.0
    """Processors that the kernel counts for one core, which share its arithmetic units."""


@dataclass(frozen=True)
class Here:
    """This machine."""

    gpus: tuple[Gpu, ...] = ()
    cores: int = 1
    """Processors that this process may use."""
    memory_bytes: int | None = None
    """Memory that this process may use."""
    processor: Processor = Processor()


def look_here(environ: Mapping[str, str], root: Path = _ROOT) -> Here:
    """Return what this machine is, without loading a CUDA library. Starts nvidia-smi if there is a GPU.

    Args:
        environ: environment of the process; CUDA_VISIBLE_DEVICES counts.
        root: folder that holds /proc, /sys and /dev.
    """
    return Here(_gpus(environ, root), usable_cores(root), memory_size(root), read_processor(root))


def read_processor(root: Path = _ROOT) -> Processor:
    """Return what /proc/cpuinfo says."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Processor()
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in text.splitlines())]
    fields = dict(reversed(pairs))
    clocks = [float(value) for name, value in pairs if name == "cpu MHz" and re.fullmatch(r"\d+(\.\d+)?", value)]
    siblings, cores = (fields.get(name, "") for name in ("siblings", "cpu cores"))
    shared = int(siblings) / int(cores) if siblings.isdecimal() and cores.isdecimal() and int(cores) else 1.0
    return Processor(
        # Arm calls them features.
        frozenset(fields.get("flags", fields.get("Features", "")).split()),
        max(clocks) / 1000 if clocks else None,
        max(1.0, shared),
    )


def _gpus(environ: Mapping[str, str], root: Path, ask: Callable[[], str] | None = None) -> tuple[Gpu, ...]:
    count = sum(1 for _ in (root / "dev").glob("nvidia[0-9]*"))
    if count == 0:
        return ()
    listed = read_gpus((ask or _asked)())
    if not listed:
        listed = {str(index): ("", Gpu("")) for index in range(count)}
    return visible_gpus(listed, environ.get("CUDA_VISIBLE_DEVICES"))


def _asked() -> str:
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def read_gpus(answer: str) -> dict[str, tuple[str, Gpu]]:
    """Return index -> (UUID, GPU) of nvidia-smi's lines; a line that is none of that form does not count."""
    found = {}
    for line in answer.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != 5 or not words[0].isdecimal():
            continue
        index, uuid, name, total, kept = words
        left = int(total) - (int(kept) if kept.isdecimal() else 0) if total.isdecimal() else None
        found[index] = (uuid, Gpu(name, None if left is None else left * _MIB))
    return found


def visible_gpus(listed: Mapping[str, tuple[str, Gpu]], visible: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order.

    A part of a GPU (MIG) has no name and no size here, because nvidia-smi tells those of the whole.
    """
    if visible is None:
        return tuple(gpu for _, gpu in listed.values())
    chosen: list[Gpu] = []
    for item in (text.strip() for text in visible.split(",")):
        by_uuid: Sequence[Gpu] = [gpu for uuid, gpu in listed.values() if item[:4] == "GPU-" and uuid.startswith(item)]
        if item in listed:
            chosen.append(listed[item][1])
        elif by_uuid:
            chosen.append(by_uuid[0])
        elif item.startswith(("GPU-", "MIG-")):
            chosen.append(Gpu(""))
        else:
            # CUDA ignores the entries after the first one that names no device.
            break
    return tuple(chosen)
