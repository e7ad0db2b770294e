"""The failing branches of every check, on machines that are a folder, an environment and other programs' answers."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.doctor import after, commands, look, the
from trainer.config.compose import compose
from trainer.config.schema import (
    DeviceKind,
    LaunchConfig,
    LayoutConfig,
    LoggingConfig,
    OffloadKind,
    RuntimeConfig,
    TridentConfig,
    WandbMode,
    ZeroConfig,
)
from trainer.doctor import host_checks, limit_checks, peer_checks, software_checks
from trainer.doctor.finding import Finding, Status
from trainer.doctor.host_checks import look_at_clock
from trainer.doctor.required import Installed, Wanted, installed, versions_of_tests, wanted
from trainer.doctor.surroundings import Surroundings
from trainer.engine import adam
from trainer.engine.kernel_lock import Owner
from trainer.launcher import network
from trainer.metrics import wandb_mode

ON_GPUS = RuntimeConfig(device=DeviceKind.cuda)
NVME = TridentConfig(zero=ZeroConfig(stage=3, offload=OffloadKind.nvme, nvme_path="/tmp"))


def fill(root: Path, **files: str) -> Path:
    """Write files below a folder; `__` in a name is a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}")
    (folder / name).chmod(0o755)
    return folder


# The machine.


def test_ranks_that_share_processors(tmp_path: Path) -> None:
    many = TridentConfig(layout=LayoutConfig(data_parallel_size=4096))
    [found] = look("processors", Surroundings(many, {}))
    assert (found.status, "for 4096 ranks: ranks take turns" in found.found) == (Status.warn, True)
    [found] = look("memory", Surroundings(many, {}))
    assert (found.status, "4096 ranks take 2048.0 GiB" in found.found) == (Status.fail, True)
    fill(tmp_path, proc__cpuinfo="flags\t: sse2 avx\n")
    [found] = look("processors", Surroundings(environ={}, root=tmp_path))
    assert os.uname().machine != "x86_64" or found.status is Status.warn


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("always [madvise] never\n", Status.ok),
        ("[always] madvise never\n", Status.ok),
        ("always madvise [never]\n", Status.warn),
        ("nonsense", Status.skip),
        (None, Status.skip),
    ],
)
def test_huge_pages(text: str | None, status: Status, tmp_path: Path) -> None:
    if text is not None:
        fill(tmp_path, sys__kernel__mm__transparent_hugepage__enabled=text)
    [found] = look("huge pages", Surroundings(environ={}, root=tmp_path))
    assert found.status is status
    if status is Status.warn:
        path = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
        assert commands(found) == [f"echo madvise > {path}"]


@pytest.mark.parametrize(
    ("now", "status", "verdict"),
    [
        (None, 0x2001, Status.ok),
        (None, 0x40, Status.warn),
        (0.0, 0x2001, Status.fail),
        (1.7e9 - 1e8, 0x2001, Status.fail),
    ],
)
def test_clock(now: float | None, status: int, verdict: Status) -> None:
    [found] = look_at_clock(Surroundings(environ={}), now, status)
    assert found.status is verdict


def test_a_clock_that_the_kernel_does_not_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_checks, "_clock_status", lambda: None)
    [found] = look_at_clock(Surroundings(environ={}))
    assert found.status is Status.skip


def test_the_kernels_clock_is_asked_and_not_set() -> None:
    before = time.time()
    status = host_checks._clock_status()
    assert status is None or 0 <= status < 1 << 17
    assert abs(time.time() - before) < 60


def test_shared_memory_for_gpus(tmp_path: Path) -> None:
    fill(tmp_path, dev__nvidia0="", dev__nvidia1="", dev__nvidiactl="", dev__shm__x="")
    here = os.statvfs(tmp_path)
    ranks = here.f_bavail * here.f_frsize // (64 << 20) + 64
    around = Surroundings(TridentConfig(layout=LayoutConfig(data_parallel_size=ranks)), {}, tmp_path)
    assert (around.gpus, around.on_gpus) == (2, True)
    [found] = look("shared memory", around)
    assert (found.status, f"but {ranks} ranks that talk through NCCL need" in found.found) == (Status.fail, True)
    assert sorted(path.name for path in (tmp_path / "dev/shm").iterdir()) == ["x"], "nothing stays"


def test_only_files_that_nobody_uses_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("large", 8192), ("small", 4096), ("used", 65536), ("odd name;", 65536)):
        (tmp_path / name).write_bytes(bytes(size))
        (tmp_path / name).chmod(0o600)
    (tmp_path / "link").symlink_to("large")
    used = {(tmp_path / "used").stat().st_ino}
    monkeypatch.setattr(host_checks, "_inodes_in_use", lambda _: (used, set()))
    assert host_checks._left_behind(tmp_path, 9000) == [tmp_path / "large", tmp_path / "small"]
    assert host_checks._left_behind(tmp_path, 8000) == [tmp_path / "large"]
    assert host_checks._left_behind(tmp_path, 1 << 20) == [], "it would not be enough"
    monkeypatch.setattr(host_checks, "_inodes_in_use", lambda _: (used, {os.geteuid()}))
    assert host_checks._left_behind(tmp_path, 8000) == [], "a process of this user is hidden"
    monkeypatch.setattr(host_checks, "_inodes_in_use", lambda _: (used, {os.geteuid() + 1}))
    assert host_checks._left_behind(tmp_path, 8000) == [tmp_path / "large"], "another user cannot open it"
    (tmp_path / "large").chmod(0o644)
    assert host_checks._left_behind(tmp_path, 8000) == []


def test_files_in_use_are_found(tmp_path: Path) -> None:
    import mmap

    for name in ("open", "mapped", "free"):
        (tmp_path / name).write_bytes(bytes(4096))
    with (tmp_path / "open").open("rb"), (tmp_path / "mapped").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
        file.close()
        used, _ = host_checks._inodes_in_use(tmp_path)
        mapped.close()
    inodes = {name: (tmp_path / name).stat().st_ino for name in ("open", "mapped", "free")}
    assert inodes["open"] in used
    assert inodes["free"] not in used
    assert inodes["mapped"] in used


# Limits.


def test_a_containers_limit_on_processes(tmp_path: Path) -> None:
    fill(
        tmp_path,
        proc__self__cgroup="0::/job\n",
        proc__self__mountinfo="1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    )
    fill(tmp_path / "sys/fs/cgroup/job", **{"pids.max": "100\n", "pids.current": "70\n"})
    [found] = look("processes", Surroundings(environ={}, root=tmp_path))
    assert found.status is Status.fail
    assert "may have 100 processes and threads, of which 30 are left; 1 ranks may need" in found.found
    fill(tmp_path / "sys/fs/cgroup/job", **{"pids.max": "max\n"})
    assert look("processes", Surroundings(environ={}, root=tmp_path))[0].status is Status.ok


def test_a_users_limit_on_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(limit_checks, "_threads_of_user", lambda: 990)
    for hard, aim in ((2000, "ulimit -u 2000"), (resource.RLIM_INFINITY, "ulimit -u unlimited")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (1000, hard))
        [found] = look("processes", Surroundings(environ={}, root=tmp_path))
        assert (found.status, commands(found)) == (Status.fail, [aim])
    monkeypatch.setattr(limit_checks, "_threads_of_user", lambda: 10)
    assert look("processes", Surroundings(environ={}, root=tmp_path))[0].status is Status.ok


def test_locked_memory_matters_with_infiniband(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    around = Surroundings(environ={}, root=tmp_path)
    assert look("locked memory", around)[0].status is Status.skip
    (tmp_path / "sys/class/infiniband/mlx5_0").mkdir(parents=True)
    for limits, status in (((8 << 20, 8 << 20), Status.fail), ((8 << 20, -1), Status.fail), ((-1, -1), Status.ok)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        [found] = look("locked memory", around)
        assert (found.status, "mlx5_0" in found.found) == (status, True)
        assert (commands(found)[:1] == ["ulimit -l unlimited"]) == (limits == (8 << 20, -1))


def test_asynchronous_requests(tmp_path: Path) -> None:
    assert look("asynchronous requests", Surroundings(environ={}, root=tmp_path))[0].status is Status.skip
    around = Surroundings(NVME, {}, tmp_path)
    assert look("asynchronous requests", around)[0].status is Status.skip
    fill(tmp_path / "proc/sys/fs", **{"aio-max-nr": "65536\n", "aio-nr": "60000\n"})
    [found] = look("asynchronous requests", around)
    assert (found.status, found.found) == (Status.warn, "5,536 of 65,536 of the kernel's are free")
    fill(tmp_path / "proc/sys/fs", **{"aio-max-nr": "1048576\n"})
    assert look("asynchronous requests", around)[0].status is Status.ok


# The network.


class Card:
    """A network device, as psutil tells of it."""

    def __init__(self, isup: bool) -> None:
        self.isup, self.speed, self.mtu = isup, 10_000, 1500


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"lo": Card(True), "eth0": Card(True), "ib0": Card(False)})


@pytest.mark.parametrize(
    ("variable", "value", "good"),
    [
        ("GLOO_SOCKET_IFNAME", "eth0", True),
        ("GLOO_SOCKET_IFNAME", "eth", False),
        ("GLOO_SOCKET_IFNAME", "ib0", False),
        ("GLOO_SOCKET_IFNAME", "lo,eth0", True),
        ("NCCL_SOCKET_IFNAME", "eth", True),
        ("NCCL_SOCKET_IFNAME", "eth0:1", True),
        ("NCCL_SOCKET_IFNAME", "=eth", False),
        ("NCCL_SOCKET_IFNAME", "=eth0", True),
        ("NCCL_SOCKET_IFNAME", "^lo", True),
        ("NCCL_SOCKET_IFNAME", "^lo,eth", False),
        ("NCCL_SOCKET_IFNAME", "^=eth", True),
        ("NCCL_SOCKET_IFNAME", "bond", False),
    ],
)
@pytest.mark.usefixtures("devices")
def test_variables_that_name_devices(variable: str, value: str, good: bool) -> None:
    environ = {variable: value}
    [found] = look("network devices", Surroundings(environ=environ))
    assert (found.name, found.status) == (variable, Status.ok if good else Status.fail)
    if not good:
        assert "eth0, lo" in found.found
        [mended] = look("network devices", Surroundings(environ=after(environ, commands(found)[0])))
        assert mended.status is Status.skip


@pytest.mark.parametrize(
    ("address", "owner", "out", "status", "with_hosts"),
    [
        ("10.0.0.5", "eth0", "eth0", Status.ok, Status.ok),
        ("10.0.0.9", "", "eth0", Status.warn, Status.fail),
        ("10.0.0.9", "", None, Status.warn, Status.fail),
        ("", "", "eth0", Status.ok, Status.ok),
        ("", "", None, Status.ok, Status.fail),
    ],
)
@pytest.mark.usefixtures("devices")
def test_host_name(
    address: str,
    owner: str,
    out: str | None,
    status: Status,
    with_hosts: Status,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network, "place_of_own_name", lambda: (address, owner))
    monkeypatch.setattr(network, "device_towards", lambda _: out)
    [found] = look("host name", Surroundings(environ={}))
    assert found.status is status
    [found] = look("host name", Surroundings(environ={}, hostfile="hosts"))
    assert found.status is with_hosts
    if with_hosts is Status.fail and out is not None:
        assert commands(found) == ["export GLOO_SOCKET_IFNAME=eth0"]
        mended = look("host name", Surroundings(environ=after({}, commands(found)[0]), hostfile="hosts"))
        assert mended[0].status is Status.ok


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [found] = look("port", Surroundings(TridentConfig(launch=LaunchConfig(master_port=port)), {}))
        assert (found.status, found.found) == (
            Status.fail,
            f"{port} cannot be listened on (Address already in use)",
        )
        other = int(found.fix.rpartition("=")[2])
        [mended] = look("port", Surroundings(TridentConfig(launch=LaunchConfig(master_port=other)), {}))
        assert mended.status is Status.ok
    assert look("port", Surroundings(environ={}))[0].status is Status.ok


@pytest.mark.parametrize(
    ("environ", "name", "status"),
    [
        ({}, "environment", Status.ok),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "launcher", Status.fail),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "launcher", Status.ok),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING", Status.warn),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, "environment", Status.ok),
        ({"TORCH_DISTRIBUTED_DEBUG": "detail"}, "TORCH_DISTRIBUTED_DEBUG", Status.warn),
        ({"CUDA_VISIBLE_DEVICES": ""}, "environment", Status.ok),
    ],
)
def test_variables(environ: Mapping[str, str], name: str, status: Status) -> None:
    [found] = look("environment", Surroundings(environ=environ))
    assert (found.name, found.status) == (name, status)
    if status is Status.warn:
        mended = look("environment", Surroundings(environ=after(environ, commands(found)[0])))
        assert [one.status for one in mended] == [Status.ok]


def test_a_variable_that_hides_all_gpus(tmp_path: Path) -> None:
    fill(tmp_path, dev__nvidia0="")
    [found] = look("environment", Surroundings(environ={"CUDA_VISIBLE_DEVICES": "-1"}, root=tmp_path))
    assert (found.name, found.status) == ("CUDA_VISIBLE_DEVICES", Status.fail)


ANSWER = {"doctor_now": "1000.5", "doctor_folder": "yes", "doctor_back": "yes"}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ""),
        ({"doctor_trident": "bash: python: No such file"}, "has no Trident at /p: bash: python: No such file"),
        ({"doctor_trident": ""}, "has no Trident at /p: it did not answer"),
        ({"doctor_trident": "0.0.9 abc 3.11.7"}, "has Trident 0.0.9 abc, but this host has"),
        ({"doctor_folder": None}, "has no folder"),
        ({"doctor_back": None}, "cannot reach a:1, where ranks would meet"),
        ({"doctor_now": "1100"}, "its clock is +99 s from this one's"),
        ({"doctor_now": "900"}, "its clock is -100 s from this one's"),
        ({"doctor_now": "soon"}, ""),
    ],
)
def test_hosts_that_differ(changes: Mapping[str, str | None], found: str) -> None:
    from trainer import __version__
    from trainer.versions import source_digest

    own = {"doctor_trident": f"{__version__} {source_digest()} 3.11.7"}
    told = {name: value for name, value in {**ANSWER, **own, **changes}.items() if value is not None}
    around = Surroundings(environ={}, python="/p")
    problems = list(peer_checks._problems("host h", told, (1000.0, 1001.0), around, "a:1"))
    assert [one.found.startswith(found) for one in problems] == ([True] if found else [])


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("Host key verification failed.", "ssh -p 22 me@b true"),
        ("ssh: Could not resolve hostname b: Name or service not known", "/etc/hosts"),
        ("ssh: connect to host b port 22: No route to host", "firewall"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R b"),
        ("", "firewall"),
    ],
)
def test_hosts_that_let_nobody_in(said: str, fix: str, tmp_path: Path) -> None:
    tools = program(tmp_path / "bin", "ssh", f"cat >&2 <<'X'\n{said}\nX\nexit 255\n")
    (tmp_path / "hosts").write_text("a slots=1\nme@b slots=1\n")
    environ = {"PATH": f"{tools}:/usr/bin:/bin"}
    found = look("hosts", Surroundings(environ=environ, hostfile=str(tmp_path / "hosts"), ssh_port=22))
    assert the(found, "host me@b").status is Status.fail
    assert fix in the(found, "host me@b").fix
    assert not [one for one in found if one.name == "pdsh"] or the(found, "pdsh").status is Status.warn


def test_no_ssh(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    [found] = look("hosts", Surroundings(environ={"PATH": str(tmp_path)}, hostfile=str(tmp_path / "hosts")))
    assert (found.status, commands(found)) == (Status.fail, ["apt-get install openssh-client"])


# Services.


def test_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mode(asked: WandbMode, **environ: str) -> Finding:
        config = TridentConfig(logging=LoggingConfig(wandb=asked))
        [found] = look("wandb", Surroundings(config, {"HOME": str(tmp_path), **environ}))
        return found

    assert mode(WandbMode.auto).status is Status.ok
    assert mode(WandbMode.disabled).status is Status.skip
    assert mode(WandbMode.online).fix.startswith("`wandb login`")
    assert "is no address" in mode(WandbMode.auto, WANDB_API_KEY="x", WANDB_BASE_URL="http://[::1").found
    monkeypatch.setattr(wandb_mode, "is_reachable", lambda _: False)
    assert (key := mode(WandbMode.auto, WANDB_API_KEY="x")).status is Status.warn
    assert "cannot be reached" in key.found
    monkeypatch.setattr(wandb_mode, "is_reachable", lambda _: True)
    assert mode(WandbMode.auto, WANDB_API_KEY="x").status is Status.ok


def test_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = compose(["data.source=hub", "data.hub_path=allenai/c4"])
    monkeypatch.setattr(wandb_mode, "is_reachable", lambda _: False)
    [found] = look("Hugging Face hub", Surroundings(config, {}))
    assert (found.status, "fetches data.hub_path=allenai/c4" in found.found) == (Status.warn, True)
    blend = compose(["data.blend={a: {hub_path: x/y, weight: 1}, b: {files: [b.txt], weight: 1}}"])
    assert "fetches data.hub_path=x/y" in look("Hugging Face hub", Surroundings(blend, {}))[0].found
    [found] = look("Hugging Face hub", Surroundings(config, {"HF_HUB_OFFLINE": "1"}))
    assert commands(found)[0] == "unset HF_HUB_OFFLINE"
    monkeypatch.setattr(wandb_mode, "is_reachable", lambda _: True)
    assert look("Hugging Face hub", Surroundings(config, {}))[0].status is Status.ok
    assert look("Hugging Face hub", Surroundings(environ={}))[0].status is Status.skip
    [found] = look("hub cache", Surroundings(config, {"HF_HOME": str(tmp_path / "hub")}))
    assert (found.status, str(tmp_path / "hub") in found.found) == (Status.ok, True)


# Software.

PRESENT = {"torch": [Installed("2.13.0+cpu", Path("/site"))]}


def problems(one: Wanted, present: Mapping[str, list[Installed]], **tested: str) -> list[Finding]:
    return list(software_checks._problems(one, present, tested, Surroundings(environ={}, python="py")))


def test_versions() -> None:
    torch = Wanted("torch", ">=2.10,<3")
    assert problems(torch, PRESENT, torch="2.13.0") == []
    [other] = problems(torch, PRESENT, torch="2.12.1")
    assert (other.status, commands(other)) == (Status.warn, ["py -m pip install 'torch==2.12.1'"])
    [missing] = problems(torch, {})
    assert (missing.status, commands(missing)) == (Status.fail, ["py -m pip install 'torch>=2.10,<3'"])
    [half] = problems(torch, {"torch": [Installed("", Path("/site"))]})
    assert (half.status, commands(half)) == (Status.fail, ["py -m pip install -I 'torch>=2.10,<3'"])
    [wrong] = problems(torch, {"torch": [Installed("2.4.0", Path("/site"))]})
    assert wrong.found == "is 2.4.0, but Trident needs torch>=2.10,<3"
    assert problems(Wanted("optuna", ">=4.5", "search"), {}) == [], "an extra may be left out"
    [extra] = problems(Wanted("optuna", ">=4.5", "search"), {"optuna": [Installed("3.0", Path("/site"))]})
    assert (extra.status, "the extra search of Trident" in extra.found) == (Status.warn, True)
    [twice] = problems(torch, {"torch": [*PRESENT["torch"], Installed("2.11.0", Path("/old"))]})
    assert "2.13.0+cpu in /site hides 2.11.0 in /old" in twice.found
    assert Wanted("a", ">=2").takes("2.1rc1")
    [unreadable] = problems(torch, {"torch": [Installed("not a version", Path("/site"))]})
    assert unreadable.status is Status.fail


def test_the_list_of_tested_versions_is_the_constraints() -> None:
    tested = versions_of_tests()
    assert {"torch", "deepspeed", "transformers", "hydra-core", "pyyaml"} <= tested.keys()
    asked = wanted()
    assert asked is not None
    assert all(one.takes(tested[one.name.lower()]) for one in asked if one.name.lower() in tested and not one.extra)
    assert versions_of_tests(Path("none")) == {}


def test_installed_packages_in_pythons_order(tmp_path: Path) -> None:
    for folder, version in (("a", "1.0"), ("b", "2.0")):
        fill(tmp_path / folder / f"My_Pkg-{version}.dist-info", METADATA=f"Name: My_Pkg\nVersion: {version}\n")
    fill(tmp_path / "b" / "broken-1.dist-info", METADATA="")
    (tmp_path / "b" / "empty-1.dist-info").mkdir()
    found = installed([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "a"), str(tmp_path / "none")])
    assert [one.version for one in found["my-pkg"]] == ["1.0", "2.0"]


def test_trident_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software_checks, "wanted", lambda: None)
    monkeypatch.setattr(software_checks, "wanted_python", lambda: None)
    [found] = look("packages", Surroundings(environ={}, python="py"))
    assert (found.status, commands(found)[0].startswith("py -m pip install -e /")) == (Status.warn, True)
    assert look("python", Surroundings(environ={}))[0].status is Status.ok


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software_checks, "wanted_python", lambda: ">=3.99")
    [found] = look("python", Surroundings(environ={}))
    assert (found.status, "but Trident needs >=3.99" in found.found) == (Status.fail, True)
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert "32 bits" in look("python", Surroundings(environ={}))[0].found


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('libx.so is gone\\nmore')\n")
    monkeypatch.setattr(software_checks, "IMPORTED", {"rich": "rich", "psutil": "psutil"})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [found] = look("imports", Surroundings())
    assert (found.name, found.found) == ("import rich", "ImportError: libx.so is gone")
    assert commands(found)[0].endswith("-m pip install --force-reinstall --no-deps rich")
    monkeypatch.delenv("PYTHONPATH")
    assert look("imports", Surroundings())[0].status is Status.ok
    [found] = look("imports", Surroundings(python="/no/such/python"))
    assert found.status is Status.fail


def libraries(tmp_path: Path, answer: str, config: TridentConfig | None = None, gpus: int = 0) -> list[Finding]:
    """Return what is made of an answer of torch and DeepSpeed."""
    root = tmp_path / "root"
    for index in range(gpus):
        fill(root, **{f"dev__nvidia{index}": ""})
    python = program(tmp_path, "python", f"cat <<'X'\n{answer}\nX\n") / "python"
    return look("torch", Surroundings(config or TridentConfig(), {"PATH": "/usr/bin:/bin"}, root, python=str(python)))


TORCH: dict[str, Any] = {"version": "2.13.0", "cuda": "13.0", "has_gloo": True, "has_nccl": True, "devices": 2}
GPUS: dict[str, Any] = {**TORCH, "names": ["H100", "H100"], "nccl": "2.27.7"}
KERNEL: Mapping[str, Any] = {"name": "cpu_adam", "compiled": False, "can_compile": True, "said": ""}
DEEPSPEED: Mapping[str, Any] = {"version": "0.19.8", "accelerator": "cuda", "kernels": [KERNEL]}


@pytest.mark.parametrize(
    ("torch", "config", "gpus", "name", "status", "found"),
    [
        (GPUS, TridentConfig(), 2, "torch", Status.ok, "2.13.0, ranks talk through NCCL 2.27.7"),
        (GPUS, TridentConfig(), 2, "CUDA", Status.ok, "13.0, 2 devices: H100"),
        (GPUS, TridentConfig(), 0, "torch", Status.ok, "2.13.0, ranks talk through gloo"),
        (TORCH | {"has_gloo": False}, TridentConfig(), 0, "torch", Status.fail, "2.13.0 was built without gloo"),
        (GPUS | {"has_nccl": False}, TridentConfig(), 2, "torch", Status.fail, "2.13.0 was built without NCCL"),
        (TORCH | {"cuda": None, "devices": 0}, TridentConfig(), 2, "CUDA", Status.fail, "torch 2.13.0 was built"),
        (GPUS | {"problem": "driver too old"}, TridentConfig(), 2, "CUDA", Status.fail, "torch (CUDA 13.0) cannot"),
        (TORCH | {"devices": 0}, TridentConfig(runtime=ON_GPUS), 0, "CUDA", Status.fail, "runtime.device=cuda, but"),
        ({"error": "ImportError: x"}, TridentConfig(), 0, "torch", Status.fail, "cannot be imported: ImportError"),
    ],
)
def test_torch(
    torch: Mapping[str, Any], config: TridentConfig, gpus: int, name: str, status: Status, found: str, tmp_path: Path
) -> None:
    answer = json.dumps({"torch": torch, "deepspeed": DEEPSPEED})
    finding = the(libraries(tmp_path, f"noise\n{answer}\nmore", config, gpus), name)
    assert finding.status is status
    assert finding.found.startswith(found)


@pytest.mark.parametrize(
    ("kernel", "config", "status"),
    [
        ({"compiled": True}, TridentConfig(), Status.ok),
        ({}, TridentConfig(), Status.ok),
        ({"can_compile": False, "said": "no"}, TridentConfig(), Status.warn),
        (
            {"can_compile": False, "said": "no"},
            TridentConfig(zero=ZeroConfig(offload=OffloadKind.cpu)),
            Status.fail,
        ),
    ],
)
def test_kernels(kernel: Mapping[str, Any], config: TridentConfig, status: Status, tmp_path: Path) -> None:
    deepspeed = {**DEEPSPEED, "kernels": [{**KERNEL, **kernel}, {**KERNEL, "name": "other", "can_compile": False}]}
    found = libraries(tmp_path, json.dumps({"torch": TORCH, "deepspeed": deepspeed}), config)
    assert the(found, "kernel cpu_adam").status is status
    assert the(found, "other kernels").status is Status.skip


@pytest.mark.parametrize("answer", ["", "Segmentation fault", '{"torch": 1'])
def test_libraries_that_do_not_answer(answer: str, tmp_path: Path) -> None:
    found = libraries(tmp_path, answer)
    assert [one.name for one in found] == ["torch"]
    assert found[0].status in (Status.fail, Status.warn)


def test_deepspeed_that_cannot_be_imported(tmp_path: Path) -> None:
    found = libraries(tmp_path, json.dumps({"torch": TORCH, "deepspeed": {"error": "AssertionError"}}))
    assert the(found, "DeepSpeed").status is Status.fail


def test_a_lock_that_was_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a disk that other machines write to, where nobody can tell.
    monkeypatch.setattr(adam, "owner_of", lambda lock: Owner.unknown)
    lock = fill(tmp_path, cpu_adam__lock="") / "cpu_adam" / "lock"
    os.utime(lock, (1, 1))
    offloads = TridentConfig(zero=ZeroConfig(offload=OffloadKind.cpu))
    [found] = look("kernel folder", Surroundings(offloads, {"TORCH_EXTENSIONS_DIR": str(tmp_path)}))
    assert found.status is Status.fail
    assert found.fix.endswith(f"delete {lock}")
    [closed] = look("kernel folder", Surroundings(offloads, {"TORCH_EXTENSIONS_DIR": "/proc/x"}))
    assert (closed.status, "/proc/x cannot be written" in closed.found) == (Status.fail, True)
    mended = after({}, commands(closed)[0])
    assert look("kernel folder", Surroundings(offloads, mended))[0].status is Status.ok
    lock.unlink()
    assert look("kernel folder", Surroundings(offloads, {"TORCH_EXTENSIONS_DIR": str(tmp_path)}))[0].status is Status.ok
