"""The suites: each lets contenders compete, and prints a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.settings import Settings
from benchmarks.suites.bubble import bubble
from benchmarks.suites.data import data
from benchmarks.suites.documents import documents
from benchmarks.suites.generate import generate
from benchmarks.suites.gpu import gpu
from benchmarks.suites.interchange import interchange
from benchmarks.suites.kernels import kernels
from benchmarks.suites.layouts import layouts
from benchmarks.suites.memory import memory
from benchmarks.suites.plan_layouts import plan_layouts
from benchmarks.suites.plan_memory import plan_memory
from benchmarks.suites.plan_search import plan_search
from benchmarks.suites.plan_time import plan_time
from benchmarks.suites.single import single
from benchmarks.suites.stock import stock
from benchmarks.suites.variants import variants
from benchmarks.suites.zero import zero

SUITES: dict[str, Callable[[Settings], Path]] = {
    "single": single,
    "layouts": layouts,
    "bubble": bubble,
    "stock": stock,
    "memory": memory,
    "zero": zero,
    "plan_memory": plan_memory,
    "gpu": gpu,
    "kernels": kernels,
    "documents": documents,
    "data": data,
    "generate": generate,
    "interchange": interchange,
    "variants": variants,
    "plan_layouts": plan_layouts,
    "plan_search": plan_search,
    "plan_time": plan_time,
}
"""Suites by name, for the command line. Each returns the record's path."""
