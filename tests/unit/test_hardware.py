"""What this machine computes with, read from nvidia-smi's answer and from files under a folder of the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.hardware import Gpu, Here, Processor, look_here, read_gpus, read_processor, visible_gpus
from trainer.machine import memory_size

ANSWER = """\
0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559, 533
1, GPU-bbbb2222, NVIDIA A100-SXM4-40GB, 40960, [N/A]
"""
H100 = Gpu("NVIDIA H100 80GB HBM3", (81559 - 533) << 20)
A100 = Gpu("NVIDIA A100-SXM4-40GB", 40960 << 20)


def test_an_answer_of_nvidia_smi() -> None:
    assert read_gpus(ANSWER) == {"0": ("GPU-aaaa1111", H100), "1": ("GPU-bbbb2222", A100)}


@pytest.mark.parametrize(
    "answer", ["", "No devices were found\n", "NVIDIA-SMI has failed, because, of, this, and that\n"]
)
def test_an_answer_without_gpus(answer: str) -> None:
    assert read_gpus(answer) == {}


def test_a_gpu_that_does_not_tell_its_memory() -> None:
    assert read_gpus("0, GPU-cc, NVIDIA GB10, [N/A], [N/A]\n") == {"0": ("GPU-cc", Gpu("NVIDIA GB10"))}


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, (H100, A100)),
        ("1", (A100,)),
        ("1,0", (A100, H100)),
        ("", ()),
        ("-1", ()),
        ("0,7,1", (H100,)),
        ("GPU-bbbb", (A100,)),
        ("MIG-1234", (Gpu(""),)),
    ],
)
def test_cuda_visible_devices_counts(visible: str | None, found: tuple[Gpu, ...]) -> None:
    assert visible_gpus(read_gpus(ANSWER), visible) == found


X86 = """\
processor\t: 0
cpu MHz\t\t: 2100.5
siblings\t: 8
cpu cores\t: 4
flags\t\t: fpu avx2 avx512f

processor\t: 1
cpu MHz\t\t: 2600.0
siblings\t: 8
cpu cores\t: 4
flags\t\t: fpu avx2 avx512f
"""


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        (X86, Processor(frozenset({"fpu", "avx2", "avx512f"}), 2.6, 2.0)),
        ("processor : 0\nFeatures : fp asimd bf16\n", Processor(frozenset({"fp", "asimd", "bf16"}), None, 1.0)),
        ("nothing that is known\n", Processor()),
        (None, Processor()),
    ],
)
def test_a_processor(cpuinfo: str | None, found: Processor, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    if cpuinfo is not None:
        (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    assert read_processor(tmp_path) == found


def test_memory_is_that_of_the_machine_without_a_limit(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert memory_size(tmp_path) is None
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:       1024 kB\n")
    assert memory_size(tmp_path) == 1 << 20


def test_this_machine() -> None:
    here = look_here({"CUDA_VISIBLE_DEVICES": ""})
    assert here.gpus == ()
    assert here.cores >= 1
    assert here.memory_bytes is not None
    assert here.memory_bytes > 1 << 28
    assert here.processor.flags


def test_gpus_without_nvidia_smi_have_no_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "dev" / "nvidia1").touch()
    (tmp_path / "dev" / "nvidiactl").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look_here({}, tmp_path).gpus == (Gpu(""), Gpu(""))
    assert look_here({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path).gpus == (Gpu(""),)


def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{ANSWER.splitlines()[0]}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert look_here({}, tmp_path).gpus == (H100,)


def test_nothing_is_started_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("nvidia-smi is asked"))
    assert look_here({}, tmp_path) == Here((), look_here({}, tmp_path).cores, None, Processor())
