from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from typing import Any

import pytest

from trainer.engine import host_memory

PROGRAM = """
import json, resource, sys
import torch
from trainer.engine.host_memory import heap_ranges, keep_freed_memory
listens = keep_freed_memory() if sys.argv[1] == "keep" else False

def use() -> None:
    kept = [torch.full((1 << 20,), 1.0) for _ in range(32)]
    del kept

use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps({"listens": listens, "faults": faults, "heap": sum(e - s for s, e in heap_ranges())}))
"""


def measured(how: str) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_freed_block_is_used_again_without_a_page_fault() -> None:
    kept, returned = measured("keep"), measured("default")
    if not kept["listens"]:
        pytest.skip("the C library has no mallopt")
    assert 10 * kept["faults"] < returned["faults"]
    assert kept["heap"] > 1 << 30


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, name: object) -> None:
            """No mallopt."""

    monkeypatch.setattr(ctypes, "CDLL", Other)
    assert not host_memory.keep_freed_memory()
