from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.machine import gpu_memory_bytes


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, code: int = 0) -> None:
    """Put a driver's tool on the path that says these lines."""
    tool = folder / "nvidia-smi"
    tool.write_text("\n".join(["#!/bin/sh", *(f"echo '{line}'" for line in lines), f"exit {code}\n"]))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        (["81559"], 0, 81559 << 20),
        (["81559", "24564"], 0, 24564 << 20),
        (["[N/A]"], 0, None),
        (["No devices were found"], 6, None),
    ],
)
def test_the_driver_tells_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], code: int, expected: int | None
) -> None:
    driver(tmp_path, monkeypatch, *lines, code=code)
    assert gpu_memory_bytes() == expected


def test_without_a_driver_there_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_bytes() is None
