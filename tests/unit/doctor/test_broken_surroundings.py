"""Surroundings that are broken for real; what the doctor says mends them, word by word."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.doctor import ROOT, Room, after, commands, look, the
from trainer.config.schema import DataConfig, OffloadKind, TridentConfig, ZeroConfig
from trainer.doctor.finding import Finding, Status
from trainer.doctor.peer_checks import look_at_peers
from trainer.doctor.surroundings import Surroundings

OFFLOAD = ("zero.stage=1", "zero.offload=cpu")
OFFLOADS = TridentConfig(zero=ZeroConfig(offload=OffloadKind.cpu))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRIDENT_", "PYTHON"))}
    return Room({**kept, "TRIDENT_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}, tmp_path)


def without_compiler(tmp_path: Path) -> str:
    """Return a search path with the commands of a shell and without a compiler."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "rm", "mount", "ninja"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    return str(tools)


@pytest.mark.skipif(shutil.which("g++", path="/usr/bin") is None, reason="needs g++ in /usr/bin")
def test_no_compiler(room: Room, tmp_path: Path) -> None:
    environ = {**room.environ, "PATH": without_compiler(tmp_path)}
    found = the(look("compiler", Surroundings(OFFLOADS, environ)), "compiler")
    assert (found.status, found.found) == (
        Status.fail,
        "g++ is not on PATH; zero.offload and runtime.compile need one",
    )
    assert the(look("compiler", Surroundings(environ=environ)), "compiler").status is Status.warn, "none is needed"
    [mend] = commands(found)
    mended = Surroundings(OFFLOADS, after(environ, mend))
    assert the(look("compiler", mended), "compiler").status is Status.ok
    other = {**room.environ, "CXX": "/no/such/c++"}
    found = the(look("compiler", Surroundings(OFFLOADS, other)), "compiler")
    assert "/no/such/c++ is not on PATH" in found.found
    [mend] = commands(found)
    assert shutil.which(after(other, mend)["CXX"]) is not None


COMPILER = """#!/bin/bash
[[ "$*" == *--version* ]] && { echo "fake 1.0"; exit 0; }
echo "probe.cpp:2:10: fatal error: MESSAGE" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("message", "found", "fix"),
    [
        ("Python.h: No such file or directory", "Python.h is not in", "python3-dev"),
        ("omp.h: No such file or directory", "OpenMP is missing", "libgomp1"),
        ("unrecognized command-line option -std=c++20", "it knows no C++20", "g++ 11 or newer"),
        ("vector: No such file or directory", "vector: No such file", "reinstall g++"),
    ],
)
def test_a_compiler_that_lacks_something(message: str, found: str, fix: str, room: Room, tmp_path: Path) -> None:
    fake = tmp_path / "g++"
    fake.write_text(COMPILER.replace("MESSAGE", message))
    fake.chmod(0o755)
    environ = {**room.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    told = the(look("compiler", Surroundings(OFFLOADS, environ)), "compiler")
    assert told.status is Status.fail
    assert told.found.startswith(f"fake 1.0: {found}") or found in told.found
    assert fix in told.fix


def test_low_limit_of_files(room: Room) -> None:
    [found] = room.look("open files", before="ulimit -Sn 128")
    assert found.status is Status.fail
    assert found.found.startswith("a process may have 128 (its user may raise that to ")
    [mend] = commands(found)
    assert re.fullmatch(r"ulimit -n \d+", mend)
    [mended] = room.look("open files", before=f"ulimit -Sn 128; {mend}")
    assert mended.status is Status.ok
    [closed] = room.look("open files", before="ulimit -n 128")
    assert (closed.status, "limits.conf" in closed.fix) == (Status.fail, True)
    [many] = room.look("open files", "layout=dp4096", before="ulimit -Sn 1024")
    assert "a rank among 4,096 may need 33,024" in many.found


def test_a_folder_that_cannot_be(room: Room, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environ = {**room.environ, "TRIDENT_CACHE": str(tmp_path / "file" / "cache")}
    [found] = look("token cache", Surroundings(environ=environ))
    assert (found.status, found.found) == (
        Status.fail,
        f"{tmp_path}/file/cache cannot be written: {tmp_path}/file is no folder (nearest folder that exists: "
        f"{tmp_path}/file)",
    )
    [mend] = commands(found)
    assert mend.startswith("export TRIDENT_CACHE=/")
    assert [one.status for one in look("token cache", Surroundings(environ=after(environ, mend)))] == [Status.ok]
    named = TridentConfig(data=DataConfig(cache_dir=f"{tmp_path}/file/x"))
    assert look("token cache", Surroundings(named, environ))[0].fix.startswith("set data.cache_dir=/")
    [run] = look("run folder", Surroundings(TridentConfig(run_dir=f"{tmp_path}/file/run"), environ))
    mended = TridentConfig(run_dir=run.fix.removeprefix("set run_dir="))
    assert [one.status for one in look("run folder", Surroundings(mended, environ))] == [Status.ok]
    assert not list(tmp_path.glob(".trident*")), "nothing stays"


def mounts() -> bool:
    """Return whether this user may mount in a namespace of its own."""
    return (
        os.getuid() == 0
        and subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
        ).returncode
        == 0
    )


needs_mounts = pytest.mark.skipif(not mounts(), reason="needs root, and leave to mount")


class Apart:
    """Checks in one mount namespace, one after the other."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def look(self, setting_up: str, check: str, *words: str) -> Finding:
        """Return the only finding, after commands in a namespace that ends with them."""
        inner = Room(self._room.environ, self._room.cwd)
        script = self._room.cwd / "apart.sh"
        script.write_text(f'set -e\n{setting_up}\nexec "$@"\n')
        python = self._room.cwd / "python-apart"
        python.write_text(f'#!/bin/bash\nexec unshare --mount /bin/bash {script} {sys.executable} "$@"\n')
        python.chmod(0o755)
        [found] = Room(inner.environ, inner.cwd, str(python)).look(check, *words)
        return found


@needs_mounts
def test_full_shared_memory(room: Room) -> None:
    small = "mount -t tmpfs -o size=4m tmpfs /dev/shm"
    left = f"{small}; head -c 4194304 /dev/zero >/dev/shm/left_behind 2>/dev/null || true"
    apart = Apart(room)
    assert apart.look(small, "shared memory").status is Status.ok
    found = apart.look(left, "shared memory")
    assert found.status is Status.fail
    assert "/dev/shm has 0 of 4 MiB free" in found.found
    *remove, grow = commands(found)
    # Where root may look at every process, it knows that none uses the file.
    assert remove in ([], ["rm /dev/shm/left_behind"])
    assert apart.look(f"{left}; {'; '.join(remove) or grow}", "shared memory").status is Status.ok
    assert apart.look(f"{left}; {grow}", "shared memory").status is Status.ok
    used = f"{left}; exec 4</dev/shm/left_behind"
    assert commands(apart.look(used, "shared memory")) == [grow], "a process has it open"
    gone = apart.look("mount -t tmpfs tmpfs /dev", "shared memory")
    assert gone.found.startswith("/dev/shm is not there")


@needs_mounts
def test_read_only_cache(room: Room, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    apart = Apart(room)
    locked = f"mount -t tmpfs -o ro tmpfs {tmp_path}/cache"
    found = apart.look(locked, "token cache")
    assert (found.status, found.found) == (Status.fail, f"{tmp_path}/cache cannot be written: it is read-only")
    assert apart.look(f"{locked}; {commands(found)[0]}", "token cache").status is Status.ok
    kernels = f"{locked}; export TORCH_EXTENSIONS_DIR={tmp_path}/cache"
    found = apart.look(kernels.replace("-o ro", "-o noexec"), "kernel folder", *OFFLOAD)
    assert "is mounted with noexec" in found.found or "noexec" in found.found
    assert apart.look(f"{kernels}; {commands(found)[0]}", "kernel folder", *OFFLOAD).status is Status.ok
    full = f"mount -t tmpfs -o size=64k tmpfs {tmp_path}/cache; head -c 65536 /dev/zero >{tmp_path}/cache/x || true"
    assert "the disk is full" in apart.look(full, "token cache").found
    few = f"mount -t tmpfs -o nr_inodes=100 tmpfs {tmp_path}/cache"
    assert "more files only" in apart.look(few, "token cache").found


def old(folder: Path, name: str, version: str) -> Path:
    """Put the description of a package into a folder, as pip does."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n{info.name}/INSTALLER,,\n")
    (info / "INSTALLER").write_text("pip\n")
    return folder


def test_a_wrong_version_that_hides_a_good_one(room: Room, tmp_path: Path) -> None:
    folder = old(tmp_path / "old", "deepspeed", "0.18.4")
    broken = Room({**room.environ, "PYTHONPATH": str(folder)}, tmp_path)
    findings = broken.look("packages")
    found = [one for one in findings if one.name == "package deepspeed"]
    assert [one.status for one in found] == [Status.fail, Status.warn]
    assert "is 0.18.4, but Trident needs deepspeed<0.20,>=0.19.8" in found[0].found
    assert "is there twice" in found[1].found
    [mend] = commands(found[0])
    assert mend == f"export PYTHONPATH={ROOT}", "what is left of it"
    mended = broken.look("packages", before=mend)
    assert "package deepspeed" not in [one.name for one in mended]


def test_a_wrong_version_in_the_environment_is_mended_by_pip(room: Room, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, symlinks=True)
    [site] = place.glob("lib/python3.*/site-packages")
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site / "base.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in paths))
    old(site, "wandb", "0.1.0")
    wheel = tmp_path / "wheels" / "wandb-0.26.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "wandb-0.26.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: wandb\nVersion: 0.26.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
        "PIP_NO_DEPS": "1",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    broken = Room({**room.environ, **offline}, tmp_path, str(place / "bin" / "python"))
    found = next(one for one in broken.look("packages") if one.name == "package wandb")
    assert (found.status, "is 0.1.0, but Trident needs wandb<1,>=0.25" in found.found) == (Status.fail, True)
    [mend] = commands(found)
    assert mend == f"{place}/bin/python -m pip install 'wandb<1,>=0.25'"
    mended = broken.look("packages", before=f"{mend} >pip.log 2>&1 || cat pip.log")
    assert [one.found for one in mended if one.name == "package wandb" and one.status is Status.fail] == []
    assert (site / "wandb-0.26.0.dist-info").is_dir()


def test_missing_libaio(room: Room, tmp_path: Path) -> None:
    nvme = TridentConfig(zero=ZeroConfig(stage=3, offload=OffloadKind.nvme, nvme_path=str(tmp_path)))
    found = the(look("torch", Surroundings(nvme, room.environ)), "kernel async_io")
    if found.status is Status.ok:
        pytest.skip("libaio is installed here")
    assert (found.status, "libaio" in found.found) == (Status.fail, True)
    # A library that has the function that DeepSpeed looks for.
    (tmp_path / "aio" / "lib").mkdir(parents=True)
    source = tmp_path / "aio.c"
    source.write_text("int io_submit(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-o", str(tmp_path / "aio/lib/libaio.so"), str(source)], check=True, timeout=60)
    install, _, named = commands(found)
    assert install == "apt-get install libaio-dev"
    environ = after(room.environ, named.replace("FOLDER", f"{tmp_path}/aio"))
    assert the(look("torch", Surroundings(nvme, environ)), "kernel async_io").status is Status.ok


SSH = """#!/bin/bash
# A stand-in: it lets in who has left a key.
host="${@: -2:1}"
[[ -e "$HOME/key-of-$host" ]] || { echo "me@$host: Permission denied (publickey)." >&2; exit 255; }
exec bash -c "${@: -1}"
"""


def test_unreachable_host(room: Room, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("ssh", SSH), ("ssh-copy-id", '#!/bin/bash\ntouch "$HOME/key-of-$1"\n'), ("pdsh", "")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "hosts").write_text(f"{socket.gethostname()} slots=2\nother slots=2\n")
    environ = {**room.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    around = Surroundings(environ=environ, hostfile=str(tmp_path / "hosts"))
    found = look("hosts", around)
    assert [one.status for one in found] == [Status.fail, Status.fail]
    assert "Permission denied (publickey)" in found[1].found
    keys = [commands(one)[0] for one in found]
    assert keys == [f"ssh-copy-id {socket.gethostname()}", "ssh-copy-id other"]
    after(environ, "; ".join(keys))
    mended = look("hosts", around)
    assert [one.status for one in mended] == [Status.ok, Status.ok]
    assert "has the same Trident, reaches" in mended[1].found


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh")
def test_a_host_without_a_server(room: Room, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        (tmp_path / ".ssh").mkdir()
        (tmp_path / "hosts").write_text("no-such-host.invalid slots=2\n127.0.0.1 slots=2\n")
        around = Surroundings(environ=room.environ, hostfile=str(tmp_path / "hosts"), ssh_port=port)
        found = {one.name: one for one in look_at_peers(around)}
    refused, unknown = found["host 127.0.0.1"], found["host no-such-host.invalid"]
    assert (refused.status, unknown.status) == (Status.fail, Status.fail)
    assert "Connection refused" in refused.found
    assert "systemctl start ssh" in refused.fix
    assert "/etc/hosts" in unknown.fix
