"""The image for CPUs, built as it is, and what containers of it do. About 12 minutes; `pytest --run-containers`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.containers.podman import ROOT, USER, Container, Engine, missing
from tests.helpers.command import rows, wait_until

pytestmark = [pytest.mark.container, pytest.mark.timeout(3000)]
IMAGE = "localhost/trident:cpu"
LOCKED = ("--read-only", "--tmpfs", "/tmp:mode=1777,exec", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""As docker/compose.yaml has it."""
SETTINGS = (
    *("data=synthetic", "model.vocab_size=256", "runtime.device=cpu", "logging.wandb=disabled"),
    *("run_dir=/runs/R", "data.cache_dir=/runs/cache"),
)
START_S = 300


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    why = missing()
    if why is not None:
        pytest.skip(why)
    return Engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    done = engine.build("Dockerfile.cpu", IMAGE, engine.base())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return IMAGE


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder to mount that the image's user may write to."""
    folder = tmp_path / "runs"
    folder.mkdir()
    os.chown(folder, USER, 0)
    return folder


@pytest.fixture
def network(engine: Engine) -> Iterator[str]:
    name = f"trident-test-{os.getpid()}"
    engine.podman("network", "create", name)
    yield name
    engine.podman("network", "rm", "--force", name, check=False)


def mounted(runs: Path, *options: str) -> list[str]:
    return [*LOCKED, "--volume", f"{runs}:/runs", *options]


def train(*words: str) -> list[str]:
    return [IMAGE, "train", *SETTINGS, *words]


def steps(runs: Path) -> list[int]:
    return [row["step"] for row in rows(runs / "R")]


def name_of(what: str) -> str:
    return f"trident-test-{os.getpid()}-{what}"


@pytest.mark.parametrize("user", [(), ("--user", "4242:0")], ids=["its user", "any id"])
def test_it_trains_with_a_read_only_root_as_a_user_and_without_shared_memory(
    user: Sequence[str], engine: Engine, image: str, runs: Path
) -> None:
    if user:
        runs.chmod(0o2775)
    options = mounted(runs, "--shm-size", "64k", *user)
    done = engine.podman("run", "--rm", *options, *train("layout=dp2", "train.steps=3"), timeout_s=START_S)
    assert "finished at step 3" in done.stdout
    assert steps(runs) == [1, 2, 3]
    owners = {path.stat().st_uid for path in (runs / "R").rglob("*")}
    assert owners == {4242 if user else USER}


def test_nothing_of_this_machine_is_in_the_image(engine: Engine, image: str) -> None:
    script = (
        "ls /etc/pip.conf /opt/wheels /src 2>/dev/null; ls /etc/ssh/ssh_host_* 2>/dev/null; id -u; trident --version"
    )
    done = engine.podman("run", "--rm", *LOCKED, image, "bash", "-c", script)
    lines = done.stdout.split()
    left = [line for line in lines[:-2] if line not in ("/etc/pip.conf", "/opt/wheels:", "/src:")]
    assert lines[-2] == str(USER)
    assert left == [], "mounts leave empty names behind, and nothing else"
    history = engine.podman("history", "--no-trunc", image).stdout + engine.podman("inspect", image).stdout
    assert "index-url" not in history.replace('--index-url "$TORCH_INDEX"', "").replace(
        '--index-url \\"$TORCH_INDEX\\"', ""
    )


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--entrypoint", "entrypoint"),
        ("--env", "RANKS_PER_NODE=2"),
        ("--entrypoint", "entrypoint", "--env", "RANKS_PER_NODE=2"),
    ],
    ids=["tini", "first process", "tini, a node's ranks", "first process, a node's ranks"],
)
def test_a_stop_saves_and_the_same_command_goes_on(
    options: Sequence[str], engine: Engine, image: str, runs: Path
) -> None:
    command = [*mounted(runs, *options), *train("layout=dp2", "train.steps=100000", "runtime.threads_per_rank=1")]
    with Container(engine, name_of("stop"), command) as container:
        wait_until(lambda: len(rows(runs / "R")) >= 3, START_S, "the third step")
        assert "written to in the last" in engine.podman("exec", container.name, "trident", "doctor", "--health").stdout
        assert container.stop(100) < 60
        assert container.wait(10) == 75, container.output()
    summary = json.loads((runs / "R" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    if options:
        return
    last = summary["step"]
    again = [*mounted(runs), *train("layout=dp2", "train.steps=100000", "runtime.threads_per_rank=1")]
    with Container(engine, name_of("again"), again) as container:
        wait_until(lambda: max(steps(runs)) > last, START_S, "a step after the last")
        assert f"(step {last})" in container.output()
    assert steps(runs) == list(range(1, len(steps(runs)) + 1))


def test_limits_of_the_container_count(engine: Engine, image: str, runs: Path) -> None:
    limits = ("--cpus", "1.2", "--memory", "3g")
    words = train("layout.data_parallel_size=auto", "train.steps=2")
    done = engine.podman("run", "--rm", *mounted(runs, *limits), *words, timeout_s=START_S)
    assert "1 rank" in done.stdout
    script = "from trainer.machine import *; print(usable_cores(), cpu_quota(), memory_limit().limit_gib)"
    done = engine.podman("run", "--rm", *limits, image, "python", "-c", script)
    assert done.stdout.split() == ["1", "1.2", "3.0"]


def test_a_rank_that_the_kernel_kills_is_told_with_the_limit(engine: Engine, image: str, runs: Path) -> None:
    limits = ("--memory", "700m", "--memory-swap", "700m")
    words = train("layout=dp2", "train.steps=100", "runtime.threads_per_rank=1", "model.hidden_size=1024")
    done = engine.podman("run", "--rm", *mounted(runs, *limits), *words, timeout_s=START_S, check=False)
    # 247: before the ranks know of one another, the launcher tells it.
    assert done.returncode in (7, 247), done.stdout + done.stderr
    assert "killed a process for the memory of this container or job, whose limit is 0.684 GiB" in done.stderr
    assert done.stderr.count("error: ") == 1


def test_ranks_start_over_real_ssh_and_pdsh(engine: Engine, image: str, runs: Path, network: str) -> None:
    keys = runs / "keys"
    keys.mkdir()
    shutil.copy(ROOT / "tests" / "containers" / "ssh_config", keys / "config")
    engine.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / "id_ed25519")
    shutil.copy(keys / "id_ed25519.pub", keys / "authorized_keys")
    for path in (keys, *keys.iterdir()):
        os.chown(path, USER, 0)
        path.chmod(0o700 if path.is_dir() else 0o600)
    (runs / "hosts").write_text("trident@node0 slots=1 # first\ntrident@node1 slots=1")
    options = mounted(runs, "--network", network, "--env", "TRIDENT_AUTHORIZED_KEYS=/runs/keys/authorized_keys")
    options += ["--volume", f"{keys}:/home/trident/.ssh"]
    words = (*SETTINGS, "layout=dp2", "train.steps=4", "runtime.threads_per_rank=1")
    script = 'bash /opt/trident/launch/ssh.sh --hostfile /runs/hosts --ssh-port 2222 "$@"'
    with (
        Container(
            engine, name_of("node0"), [*options, "--hostname", "node0", "--network-alias", "node0", image, "sshd"]
        ),
        Container(
            engine, name_of("node1"), [*options, "--hostname", "node1", "--network-alias", "node1", image, "sshd"]
        ),
    ):
        done = engine.podman(
            *("exec", "--env", "TRIDENT_VENV=/opt/trident", name_of("node0"), "bash", "-c", script, "sh", *words),
            timeout_s=START_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(runs) == [1, 2, 3, 4]


def test_the_nodes_of_the_compose_file_train_together(engine: Engine, image: str) -> None:
    if shutil.which("podman-compose") is None:
        pytest.skip("apt-get install podman-compose")
    compose = ("podman-compose", "--project-name", name_of("compose"), "--file", ROOT / "docker" / "compose.yaml")
    try:
        up = ("up", "--no-build", "--abort-on-container-exit", "--exit-code-from", "node0")
        done = engine.call(*compose, *up, timeout_s=START_S, STEPS="4")
        assert "finished at step 4" in done.stdout + done.stderr
        assert "4 ranks = pipeline 2 x tensor 2" in done.stdout + done.stderr
    finally:
        engine.call(*compose, "down", "--volumes", check=False)
        engine.podman("network", "rm", "--force", f"{name_of('compose')}_ranks", check=False)
