"""What control groups grant, from trees of files as the kernel, Docker, Kubernetes and Slurm show them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.machine import (
    MemoryLimit,
    OomKills,
    cpu_quota,
    cpu_seconds,
    memory_limit,
    shared_memory_problem,
    usable_cores,
)

GIB = 1 << 30
V2_MOUNT = "30 24 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNT = "3{index} 24 0:2{index} {top} /sys/fs/cgroup/{name} rw,nosuid - cgroup cgroup rw,{name}\n"


def tree(root: Path, group: str, mounts: str, files: Mapping[str, str], kill_count: int = 0) -> Path:
    facts = {
        "proc/self/cgroup": group,
        "proc/self/mountinfo": "22 1 0:21 / / rw - ext4 /dev/root rw\n" + mounts,
        "proc/meminfo": f"MemTotal: {64 * GIB >> 10} kB\nMemFree: 1 kB\n",
        "proc/vmstat": f"pgfault 7\noom_kill {kill_count}\n",
    }
    for name, text in {**facts, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(root: Path, files: Mapping[str, str], group: str = "/", top: str = "/", kill_count: int = 0) -> Path:
    return tree(root, f"0::{group}\n", V2_MOUNT.format(top=top), files, kill_count)


def version_1(root: Path, files: Mapping[str, str], group: str, top: str) -> Path:
    names = ("cpu,cpuacct", "memory")
    groups = "".join(f"{index}:{name}:{group}\n" for index, name in enumerate(names, start=2)) + f"0::{group}\n"
    mounts = "".join(V1_MOUNT.format(index=index, top=top, name=name) for index, name in enumerate(names))
    return tree(root, groups, mounts, files)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("140000 100000", 1),
        ("10000 100000", 1),
        ("50000 20000", 3),
        ("99900000 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("1000 0", 8),
    ],
)
def test_a_quota_is_rounded_to_the_nearest_number_of_cores(quota: str, cores: int, tmp_path: Path) -> None:
    assert usable_cores(version_2(tmp_path, {"cpu.max": quota})) == cores


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "cpu.max": "max 100000",
        "job/cpu.max": "300000 100000",
        "job/step/cpu.max": "400000 100000",
        "job/cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.max": "max",
        "job/memory.max": f"{4 * GIB}",
        "job/memory.current": f"{3 * GIB}",
        "job/memory.stat": f"anon 1\ninactive_file {GIB}\n",
        "job/step/memory.max": f"{8 * GIB}",
        "job/step/memory.current": f"{GIB}",
    }
    root = version_2(tmp_path, files, group="/job/step")
    assert (cpu_quota(root), usable_cores(root), cpu_seconds(root)) == (3.0, 3, 2.5)
    assert memory_limit(root) == MemoryLimit(4 * GIB, 2 * GIB)


def test_what_limits_nothing(tmp_path: Path) -> None:
    root = version_2(tmp_path / "2", {"cpu.max": "max 100000", "memory.max": "max"})
    assert (cpu_quota(root), cpu_seconds(root), memory_limit(root)) == (None, None, None)
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    files["memory/memory.limit_in_bytes"] = "9223372036854771712"
    root = version_1(tmp_path / "1", files, "/", "/")
    assert (cpu_quota(root), cpu_seconds(root), memory_limit(root)) == (None, None, None)
    # More than there is, as a limit of a larger machine's template.
    assert memory_limit(version_2(tmp_path / "3", {"memory.max": f"{100 * GIB}"})) is None
    assert (usable_cores(tmp_path / "none"), memory_limit(tmp_path / "none")) == (8, None)


@pytest.mark.parametrize(
    ("group", "top", "inside"),
    [
        ("/docker/0a", "/docker/0a", ""),
        ("/docker/0a", "/", "docker/0a/"),
        ("/docker/0a", "/docker", "0a/"),
        ("/kubepods/pod 1/0a", "/kubepods/pod\\0401", "0a/"),
        ("/../other", "/", ""),
        ("/docker/0abc", "/docker/0a", ""),
    ],
    ids=["container", "host", "one above", "blank", "outside the namespace", "another of like name"],
)
def test_version_1_in_and_outside_of_containers(group: str, top: str, inside: str, tmp_path: Path) -> None:
    files = {
        f"cpu,cpuacct/{inside}cpu.cfs_quota_us": "250000",
        f"cpu,cpuacct/{inside}cpu.cfs_period_us": "100000",
        f"cpu,cpuacct/{inside}cpuacct.usage": "3000000000",
        f"memory/{inside}memory.limit_in_bytes": f"{2 * GIB}",
        f"memory/{inside}memory.usage_in_bytes": f"{GIB}",
        f"memory/{inside}memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}\n",
    }
    root = version_1(tmp_path, files, group, top)
    assert (cpu_quota(root), cpu_seconds(root)) == (2.5, 3.0)
    assert memory_limit(root) == MemoryLimit(2 * GIB, GIB // 2)


def test_affinity_may_be_tighter_than_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    assert usable_cores(version_2(tmp_path, {"cpu.max": "400000 100000"})) == 1


def test_a_kill_for_the_groups_memory_is_told_with_its_limit(tmp_path: Path) -> None:
    files = {"memory.max": f"{3 * GIB // 2}", "memory.events": "oom 3\noom_kill 3\n"}
    root = version_2(tmp_path, files)
    kills = OomKills(root)
    assert (kills.hint(), kills.is_ours()) == (None, False)
    version_2(tmp_path, {**files, "memory.events": "oom 4\noom_kill 4\n"}, kill_count=9)
    told = kills.hint()
    assert told is not None
    assert kills.is_ours()
    assert told.startswith(
        "the kernel has killed a process for the memory of this container or job, whose limit is 1.5 GiB;"
    )


def test_version_1_counts_kills_elsewhere(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": f"{GIB}", "memory/memory.oom_control": "under_oom 0\noom_kill 0\n"}
    root = version_1(tmp_path, files, "/docker/0a", "/docker/0a")
    kills = OomKills(root)
    version_1(root, {"memory/memory.oom_control": "under_oom 0\noom_kill 1\n"}, "/docker/0a", "/docker/0a")
    told = kills.hint()
    assert told is not None
    assert "whose limit is 1 GiB" in told


def test_a_kill_for_the_machines_memory_is_told_as_what_it_may_be(tmp_path: Path) -> None:
    kills = OomKills(version_2(tmp_path, {"memory.max": "max", "memory.events": "oom_kill 0\n"}, kill_count=1))
    version_2(tmp_path, {}, kill_count=2)
    told = kills.hint()
    assert not kills.is_ours(), "it may have been another run's"
    assert told is not None
    assert told.startswith(
        "the kernel has killed a process for the memory of this machine, perhaps one of another run;"
    )


def test_shared_memory_matters_to_ranks_with_gpus_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_frsize=4096, f_blocks=(64 << 20) // 4096))
    assert shared_memory_problem(1) is None
    told = shared_memory_problem(8)
    assert told is not None
    assert told.startswith("/dev/shm should have 512 MiB for 8 ranks that talk through NCCL, but has 64 MiB; start the")
    assert "--shm-size=1g or --ipc=host" in told
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_frsize=4096, f_blocks=(1 << 30) // 4096))
    assert shared_memory_problem(8) is None
    monkeypatch.undo()
    told = shared_memory_problem(2, tmp_path / "nowhere")
    assert told is not None
    assert "but has 0 MiB" in told
