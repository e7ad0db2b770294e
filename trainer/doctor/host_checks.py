"""Processors, memory, shared memory, huge pages and clock of this machine or container. No torch."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import trainer
from trainer.doctor.finding import Check, Finding, fail, ok, skip, warn
from trainer.doctor.surroundings import Surroundings
from trainer.hardware import read_processor
from trainer.machine import SHARED_MEMORY_BYTES_A_RANK, cpu_quota, memory_limit, memory_size, usable_cores

_GIB = 1 << 30
_MIB = 1 << 20
RANK_BYTES = 512 * _MIB
"""Memory of a rank with hardly any weights: 452 MiB were measured in each of four ranks on CPUs."""
_SEMAPHORES_BYTES = 1 * _MIB
"""Room in /dev/shm for locks between processes, where ranks exchange nothing through it."""
_UNSYNCHRONIZED = 0x40
_TIMEX_BYTES = 256
_STATUS_OFFSET = 40
"""Place of `status` in Linux's struct timex on 64 bits: a 4-byte `modes`, padded, and four longs before it."""


def look_at_cores(around: Surroundings) -> Iterator[Finding]:
    """Find ranks that must share processors, and processors without the instructions of the kernels."""
    cores, ranks, quota = usable_cores(around.root), around.ranks_here, cpu_quota(around.root)
    processor = read_processor(around.root)
    limited = "" if quota is None else f" (a container or job may use {quota:g})"
    found = f"{cores} that this process may use{limited}, for {ranks} rank{'' if ranks == 1 else 's'}"
    if ranks > cores:
        yield warn("processors", f"{found}: ranks take turns", "use a smaller layout, or give more processors")
    elif os.uname().machine == "x86_64" and processor.flags and "avx2" not in processor.flags:
        yield warn("processors", f"{found}, without AVX2: DeepSpeed's Adam is slow", "use a newer processor")
    else:
        yield ok("processors", found)


def look_at_memory(around: Surroundings) -> Iterator[Finding]:
    """Find a machine whose memory is used already, or too small for so many processes."""
    import psutil

    size, limit = memory_size(around.root), memory_limit(around.root)
    left = float(psutil.virtual_memory().available)
    if limit is not None and limit.used_bytes is not None:
        left = min(left, limit.limit_bytes - limit.used_bytes)
    ranks = around.ranks_here
    needed = ranks * RANK_BYTES
    whose = "of this container or job" if limit is not None else "of this machine"
    found = f"{left / _GIB:.1f} of {(size or left) / _GIB:.1f} GiB {whose} are free"
    if left < needed:
        yield fail(
            "memory",
            f"{found}, but {ranks} ranks take {needed / _GIB:.1f} GiB before they have any weights",
            "end what uses it (`ps aux --sort=-rss | head`), give the container more, or start fewer ranks",
        )
    else:
        yield ok("memory", f"{found}; `trident plan` says what the run needs")


def look_at_shared_memory(around: Surroundings) -> Iterator[Finding]:
    """Reserve in /dev/shm what ranks need there, and give it back."""
    folder, ranks, name = around.root / "dev/shm", around.ranks_here, "shared memory"
    through_it = around.on_gpus and ranks > 1
    needed = ranks * SHARED_MEMORY_BYTES_A_RANK if through_it else _SEMAPHORES_BYTES
    who = f"{ranks} ranks that talk through NCCL" if through_it else "the locks of processes that work together"
    if not folder.is_dir():
        yield fail(name, f"{folder} is not there; {who} need it", f"`mount -t tmpfs -o size=1g tmpfs {folder}`")
        return
    room = os.statvfs(folder)
    size, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    found = f"{folder} has {free / _MIB:,.0f} of {size / _MIB:,.0f} MiB free"
    probe = folder / f"trident-doctor-{os.getpid()}-{secrets.token_hex(4)}"
    problem = "No space left on device" if free < needed else _reserved(probe, needed)
    if problem is None:
        yield ok(name, found)
        return
    lost = _left_behind(folder, needed)
    grow = f"`mount -o remount,size={max(1, -(-(size + needed) // _GIB))}g {folder}`"
    larger = f"{grow} as root, or start the container with --shm-size=1g or --ipc=host"
    if size >= needed and lost:
        larger = f"`rm {' '.join(map(str, lost))}`, which no process uses; or {larger}"
    yield fail(name, f"{found}, but {who} need {needed / _MIB:,.0f} MiB ({problem})", larger)


def _reserved(path: Path, size: int) -> str | None:
    """Take and give back room in a folder; return the reason if it cannot be had."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError as error:
        return str(error.strerror)
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        return str(error.strerror)
    finally:
        os.close(handle)
        with suppress(OSError):
            path.unlink()
    return None


def _left_behind(folder: Path, needed: int) -> list[Path]:
    """Return files of this user that no process has open or mapped, the largest first, until they make the room.

    Processes may be closed to this one. None of them must be this user's, and no other user may open the file.
    """
    used, hidden = _inodes_in_use(folder)
    files = []
    for path in folder.iterdir():
        with suppress(OSError):
            found = path.lstat()
            is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_ino not in used
            if is_own and found.st_uid not in hidden and (not hidden or found.st_mode & 0o077 == 0):
                files.append((found.st_blocks * 512, path))
    chosen, made = [], 0
    for size, path in sorted(files, reverse=True):
        if made < needed and re.fullmatch(r"[\w./+-]+", str(path)):
            chosen.append(path)
            made += size
    return chosen if made >= needed else []


def _inodes_in_use(folder: Path) -> tuple[set[int], set[int]]:
    """Return the inodes of a file system that processes have open or mapped; and whose processes hide it."""
    device, found, hidden = folder.stat().st_dev, set[int](), set[int]()
    mark = f"{os.major(device):02x}:{os.minor(device):02x}"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            maps = [line.split(maxsplit=5) for line in (process / "maps").read_text(errors="replace").splitlines()]
            links = list((process / "fd").iterdir())
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            with suppress(OSError):
                hidden.add(process.stat().st_uid)
            continue
        found |= {int(line[4]) for line in maps if len(line) == 6 and line[3] == mark}
        for link in links:
            with suppress(OSError):
                state = link.stat()
                if state.st_dev == device:
                    found.add(state.st_ino)
    return found, hidden


def look_at_huge_pages(around: Surroundings) -> Iterator[Finding]:
    """Find a kernel that gives no huge pages, not even to those who ask."""
    path = around.root / "sys/kernel/mm/transparent_hugepage/enabled"
    try:
        chosen = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        chosen = None
    if chosen is None:
        yield skip("huge pages", "this kernel does not tell of transparent huge pages")
    elif chosen[1] == "never":
        yield warn(
            "huge pages",
            "the kernel gives none (never), so ranks on processors spend time on clearing small pages",
            f"`echo madvise > {path}` as root",
        )
    else:
        yield ok("huge pages", f"{chosen[1]}: ranks ask for them and get them")


def look_at_clock(around: Surroundings, now: float | None = None, status: int | None = None) -> Iterator[Finding]:
    """Find a clock that is wrong, or that nobody corrects.

    Args:
        around: the machine.
        now: seconds since the epoch (default: by this machine's clock).
        status: the kernel's status bits (default: asked).
    """
    del around
    now = time.time() if now is None else now
    made = Path(trainer.__file__).stat().st_mtime
    when = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    fix = "`timedatectl set-ntp true`, or start chronyd; a container has the clock of its machine"
    status = _clock_status() if status is None else status
    if now < made - 86_400:
        yield fail("clock", f"it is {when} here, before this Trident was made; certificates are not valid yet", fix)
    elif status is None:
        yield skip("clock", f"{when}; the kernel does not tell whether it is corrected")
    elif status & _UNSYNCHRONIZED:
        yield warn("clock", f"{when}; nothing corrects it (NTP), so machines will differ", fix)
    else:
        yield ok("clock", f"{when}, corrected by NTP")


def _clock_status() -> int | None:
    """Return the kernel's status bits of the clock, or None if it does not tell."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    # All modes 0: nothing is changed.
    if ctypes.sizeof(ctypes.c_long) != 8 or adjtimex(buffer) < 0:
        return None
    return int.from_bytes(buffer.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")


CHECKS = (
    Check("processors", "machine", look_at_cores),
    Check("memory", "machine", look_at_memory),
    Check("shared memory", "machine", look_at_shared_memory),
    Check("huge pages", "machine", look_at_huge_pages),
    Check("clock", "machine", look_at_clock),
)
"""Checks of this file."""
