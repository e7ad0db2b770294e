"""Memory of tensors on the CPU: freed blocks are kept, in huge pages.

glibc gives every large block back to the kernel when it is freed, so a training step faults in, and the kernel clears,
all its activations anew, which takes a tenth of a step and more. Keeping the blocks costs nothing but that a process
stays as large as it once was.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from trainer.topology.huge_pages import HUGE_PAGE, MADV_HUGEPAGE

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST = (1 << 31) - 1
"""Largest threshold: glibc takes them as int."""
LARGEST_KEPT = {2: 8 << 20, 3: 4 << 20}
"""Bytes of the largest freed block that a rank keeps, by the stage of ZeRO. With stage 2 gradients and with stage 3
gathered weights come and go between blocks of every other size: kept, they leave holes that nothing fits into, and
sharding would save less or nothing. Activations stay."""
LARGEST_KEPT_OF_BUILDING = 1 << 20
"""The same until training begins: what is copied while an engine is built has sizes that no step asks for again."""
_RESERVED = 2040 << 20
"""Bytes of address space that the heap is given at once; less than the threshold above, or they would be given back."""


def keep_freed_memory(largest_bytes: int | None = None) -> bool:
    """Tell glibc to keep large freed blocks for the next step; return whether it listens. Local, takes no memory.

    Args:
        largest_bytes: blocks above go back to the kernel at once; None to keep all.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False  # another C library
    kept = bool(mallopt(_MMAP_THRESHOLD, largest_bytes or _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))
    if kept:
        _use_huge_pages(libc)
    return kept


def give_back_freed_memory() -> None:
    """Return freed heap memory to the kernel. Local; does nothing if the C library cannot."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Ask for huge pages on the heap, grown beforehand to the size of a step: advice does not reach later growth."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Never touched, so it takes address space and no memory; a limit on that makes it fail, which does no harm.
    libc.free(libc.malloc(_RESERVED))
    for start, end in heap_ranges():
        first = -(-start // HUGE_PAGE) * HUGE_PAGE
        if end > first:
            libc.madvise(first, end - first, MADV_HUGEPAGE)


def heap_ranges() -> list[tuple[int, int]]:
    """Return the address ranges of this process's heap."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    fields = [line.split() for line in lines if line.endswith("[heap]")]
    return [(int(start, 16), int(end, 16)) for start, end in (field[0].split("-") for field in fields)]
