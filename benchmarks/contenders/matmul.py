"""The machine's own GEMM: what its peak is worth in practice.

Options: `sizes`, the n of n x n x n; `repeats` of each. A step tries all of them; extras tell the best rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.contenders.common import dtype_of, set_up
from benchmarks.gate import Gate


def _best_tflops(size: int, repeats: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    fastest = float("inf")
    # A clock of the host sees a kernel's launch as well, so each time is that of several products.
    for _ in range(repeats + 1):
        wait()
        started = time.perf_counter()
        for _ in range(4):
            torch.mm(left, right, out=out)
        wait()
        fastest = min(fastest, (time.perf_counter() - started) / 4)
    return 2.0 * size**3 / fastest / 1e12


def run(case: Case, options: Mapping[str, Any], gate: Gate) -> None:
    """Measure."""
    device = set_up(case)
    found: dict[str, float] = {}
    gate.extras = lambda: {"matmul_tflops": found}
    gate.open(dtype=case.dtype)
    while True:
        for size in options["sizes"]:
            rate = _best_tflops(size, options["repeats"], dtype_of(case), device)
            found[str(size)] = max(rate, found.get(str(size), 0.0))
        gate.done([0.0])
