"""What the images are made of and do, as far as it can be seen without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.command import Running, rows, run
from tests.launch.launch_fixtures import DOCKER, LAUNCH, ROOT, START_S, call
from trainer import __version__
from trainer.config.compose import compose
from trainer.config.validate import problems

pytestmark = pytest.mark.timeout(120)
BIN = Path(sys.executable).parent
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
ENTRYPOINT = DOCKER / "entrypoint.sh"
CHECK = '["trident", "doctor", "--health"]'
IDS = [path.name for path in DOCKERFILES]


def instructions(path: Path) -> list[tuple[str, str]]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments(path: Path, word: str) -> list[str]:
    return [rest for name, rest in instructions(path) if name == word]


@pytest.mark.parametrize("path", DOCKERFILES, ids=IDS)
def test_hadolint(path: Path) -> None:
    command = [str(BIN / "hadolint"), "--config", str(DOCKER / ".hadolint.yaml"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=IDS)
def test_image(path: Path) -> None:
    base = arguments(path, "ARG")[0].split("=")[1]
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z0-9.-]+", base), "an exact tag"
    assert arguments(path, "FROM") == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]
    names = [name for name, _ in instructions(path)]
    last = instructions(path)[len(names) - names[::-1].index("FROM") - 1 :]
    assert [rest for name, rest in last if name == "USER"] == ["10001:0"]
    assert [rest for name, rest in last if name == "ENTRYPOINT"] == ['["tini", "--", "entrypoint"]']
    [health] = [rest for name, rest in last if name == "HEALTHCHECK"]
    assert health.endswith(f"CMD {CHECK}")
    assert f"VERSION={__version__}" in arguments(path, "ARG")
    assert "org.opencontainers.image.version" in " ".join(arguments(path, "LABEL"))
    # In the same layer, or the keys stay in the image.
    ssh = [rest for rest in arguments(path, "RUN") if "openssh-server" in rest]
    assert len(ssh) == 1
    assert "rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*" in ssh[0]
    assert not any("sudo" in rest or "COPY . " in rest for _, rest in instructions(path))
    kernel = [rest for rest in arguments(path, "RUN") if "DS_BUILD_CPU_ADAM=1" in rest]
    assert f"DS_ACCELERATOR={path.suffix[1:]}" in kernel[0]


@pytest.mark.parametrize("path", DOCKERFILES, ids=IDS)
def test_what_is_copied_exists_and_is_let_in(path: Path) -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest for rest in arguments(path, "COPY") if "--from" not in rest]
    sources = {word for rest in copied for word in [word for word in rest.split() if not word.startswith("--")][:-1]}
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in let_in, source


def test_nothing_else_is_let_in() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert not {".git", ".env", ".netrc", "runs", "wandb"} & {line.strip("!") for line in lines if line[0] == "!"}


def compose_file() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


def test_compose_file_fits_the_schema() -> None:
    command = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_services_are_one_world() -> None:
    found = compose_file()
    services = found["services"]
    variables = [service["environment"] for service in services.values()]
    assert {one["PET_NNODES"] for one in variables} == {str(len(services))}
    assert sorted(one["PET_NODE_RANK"] for one in variables) == [str(rank) for rank in range(len(services))]
    first = next(name for name, service in services.items() if service["environment"]["PET_NODE_RANK"] == "0")
    assert {one["PET_MASTER_ADDR"] for one in variables} == {first, services[first]["hostname"]}
    assert {one["PET_MASTER_PORT"] for one in variables} == set(services[first]["expose"])
    assert {volume for service in services.values() for volume in service["volumes"]} == {"runs:/runs"}
    assert set(found["volumes"]) == {"runs"}
    assert all(set(service["networks"]) == set(found["networks"]) for service in services.values())
    for service in services.values():
        words = [re.sub(r"\$\{\w+:-(\w*)\}", r"\1", word) for word in service["command"]]
        config = compose(words[words.index("train") + 1 :])
        assert problems(config, len(services) * int(service["environment"]["PET_NPROC_PER_NODE"])) == []
        assert (ROOT / "docker" / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_compose_commands_train_together(tmp_path: Path) -> None:
    def command(service: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        words = [word.replace("/runs", str(tmp_path)).replace("${STEPS:-20}", "5") for word in service["command"]]
        variables = {**service["environment"], "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "29878"}
        return ["bash", str(ENTRYPOINT), *words], {**variables, "TRIDENT_CACHE": str(tmp_path / "cache")}

    first, second = (command(service) for service in compose_file()["services"].values())
    with Running(first[0], tmp_path, first[1]) as one, Running(second[0], tmp_path, second[1]) as other:
        ends = [one.end(START_S), other.end(60)]
    assert [end.code for end in ends] == [0, 0], ends
    assert [row["step"] for row in rows(tmp_path / "compose")] == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "compose" / "logs").glob("rank_*.log"))) == 4


def enter(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return call(ENTRYPOINT, *words, environment={"TRIDENT_LAUNCH": str(LAUNCH), **environment}, cwd=cwd)


def test_a_command_runs_as_it_is(tmp_path: Path) -> None:
    done = enter("sh", "-c", 'echo "$1|$HOME"; exit 3', "-", "a b", cwd=tmp_path, HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (3, f"a b|{tmp_path}\n")


def test_train_starts_this_nodes_ranks(tmp_path: Path) -> None:
    pod = {"NNODES": "2", "JOB_COMPLETION_INDEX": "1", "RANKS_PER_NODE": "1", "MASTER_ADDR": "a"}
    done = enter("train", "--dry-run", "layout=pp2", cwd=tmp_path, **pod)
    assert re.match(r"env RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 .* -m trainer train layout=pp2\n$", done.stdout), done.stderr
    done = enter("train", cwd=tmp_path, NNODES="2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --node-rank must say")


def test_signals_reach_the_command(tmp_path: Path) -> None:
    script = "trap 'exit 75' TERM; touch here; while :; do sleep 0.05; done"
    with Running(["bash", str(ENTRYPOINT), "bash", "-c", script], tmp_path) as running:
        end = time.monotonic() + 20
        while not (tmp_path / "here").exists() and time.monotonic() < end:
            time.sleep(0.05)
        running.process.send_signal(signal.SIGTERM)
        assert running.end(20).code == 75


@pytest.mark.skipif(os.getuid() != 0, reason="only root can take another id")
def test_any_id_without_name_and_home(tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv")
    script = '[[ -w "$HOME" && "$HOME" != / ]] && rmdir "$HOME" && echo "$USER $LOGNAME"'
    copy = Path(tempfile.gettempdir()) / f"trident-entrypoint-{os.getpid()}"
    command = [setpriv, "--reuid", "123456", "--regid", "0", "--clear-groups", "bash", str(copy), "bash", "-c", script]
    kept = {"PATH": "/usr/bin:/bin", "HOME": "/"}
    # Where that id can read it.
    copy.write_text(ENTRYPOINT.read_text())
    try:
        done = subprocess.run(command, env=kept, cwd="/", capture_output=True, text=True, check=False)
    finally:
        copy.unlink()
    assert (done.returncode, done.stdout) == (0, "trident trident\n"), done.stderr


SSHD = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$HOME/sshd"
"""
KEYGEN = """#!/usr/bin/env bash
touch "${@: -1}"
"""


@pytest.fixture
def sshd(tmp_path: Path) -> Path:
    """A home with stand-ins for sshd and ssh-keygen."""
    for name, text in (("sshd", SSHD), ("ssh-keygen", KEYGEN)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def test_sshd_is_started_only_when_asked_for_and_takes_only_keys(sshd: Path) -> None:
    path = f"{sshd / 'bin'}:{os.environ['PATH']}"
    home = {"PATH": path, "HOME": str(sshd), "TMPDIR": str(sshd)}
    assert enter("true", cwd=sshd, **home).returncode == 0
    assert not (sshd / "sshd").exists()
    done = enter("true", cwd=sshd, TRIDENT_SSHD="1", **home)
    assert done.returncode == 2
    assert done.stderr.startswith("error: TRIDENT_AUTHORIZED_KEYS must name a file with public keys, but ")
    (sshd / "keys").write_text("ssh-ed25519 AAAA me\n")
    done = enter("echo", "beside", cwd=sshd, TRIDENT_SSHD="1", TRIDENT_AUTHORIZED_KEYS=str(sshd / "keys"), **home)
    assert (done.returncode, done.stdout) == (0, "beside\n"), done.stderr
    options = (sshd / "sshd").read_text().splitlines()
    assert {"PasswordAuthentication=no", "KbdInteractiveAuthentication=no", "UsePAM=no"} <= set(options)
    assert options[options.index("-p") + 1] == "2222"
    host_key = Path(options[options.index("-h") + 1])
    assert host_key.parent.stat().st_mode & 0o077 == 0
    assert (host_key.parent / "authorized_keys").read_text() == "ssh-ed25519 AAAA me\n"
    enter("sshd", cwd=sshd, TRIDENT_AUTHORIZED_KEYS=str(sshd / "keys"), **home)
    assert "-D" in (sshd / "sshd").read_text().splitlines()


def test_the_images_compiler_compiles_for_older_processors(tmp_path: Path) -> None:
    (tmp_path / "g++").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "g++").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ["-O3", "-march=native", "-D__AVX512__", "-o", "a b.o"]
    ended = run([str(DOCKER / "portable-cxx.sh"), *words], tmp_path, 20, {"PATH": path, "CPU_ARCH": "x86-64-v3"})
    assert ended.out.splitlines() == ["-O3", "-march=x86-64-v3", "-D__AVX256__", "-o", "a b.o"]
