"""Two machines without a cluster: the real launchers between network namespaces, and one that loses its power."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.command import Ended, Running, rows, wait_until
from tests.helpers.dist import run_distributed, train_command
from tests.helpers.nodes import LoopbackNodes, NamespaceNodes, Nodes, can_make_namespaces

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 14
KILLED_AFTER = 5
START_S = 200
SETTINGS = (
    *("layout=pp2_dp2", "data=synthetic", "data.synthetic_tokens=16384", "model.vocab_size=256"),
    *("model.hidden_size=32", "model.seq_length=32", "batch.global_batch_size=8", f"train.steps={STEPS}"),
    *("checkpoint.every=3", "runtime.device=cpu", "runtime.threads_per_rank=1", "runtime.timeout_s=120"),
    *("logging.wandb=disabled", "launch.restart_backoff_s=0.5"),
)
Curve = list[tuple[int, float, float]]


def curve(run_dir: Path) -> Curve:
    return [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in rows(run_dir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """The same run on one machine, which nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "R"
    assert run_distributed(train_command, 4, (*SETTINGS, "checkpoint=none", f"run_dir={run_dir}")) == [0] * 4
    return curve(run_dir)


@pytest.fixture(scope="module", params=["namespaces", pytest.param("loopback", marks=pytest.mark.slow)])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    are_machines = request.param == "namespaces" and can_make_namespaces()
    made: Nodes = NamespaceNodes(folder, 2) if are_machines else LoopbackNodes(2)
    with made:
        yield made


def deepspeed(nodes: Nodes, folder: Path) -> list[list[str]]:
    """The command of each node: the deepspeed launcher without ssh, as launch/ssh.sh starts it."""
    hosts = folder / "hosts"
    hosts.write_text("node-0 slots=2\nnode-1 slots=2\n")
    options = ("--no-ssh", "--hostfile", str(hosts), "--master-addr", nodes.name(0), "--master-port", "29876")
    return [
        ["bash", str(ROOT / "launch" / "ssh.sh"), *options, "--max-restarts", "2", "--node-rank", str(index)]
        for index in range(2)
    ]


def torchrun(nodes: Nodes, folder: Path) -> list[list[str]]:
    """The command of each node, as docs/clusters.md gives it."""
    commands = []
    for index in range(2):
        options = ["--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "2", "--rdzv-backend", "c10d"]
        options += ["--rdzv-endpoint", f"{nodes.name(0)}:29877", "--rdzv-id", "trident"]
        if not nodes.are_machines:
            # The endpoint is an address of both.
            options += ["--rdzv-conf", f"is_host={int(index == 0)}"]
        command = [str(Path(sys.executable).parent / "torchrun"), *options, "-m", "trainer", "train"]
        commands.append(["env", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", *command])
    return commands


def train_with_a_loss(nodes: Nodes, commands: list[list[str]], run_dir: Path, lost: int) -> list[Ended]:
    """Run both nodes, cut the power of one, start a machine in its place, and return how the two ended."""
    environment = {"TRIDENT_VENV": sys.prefix, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    words = (*SETTINGS, f"run_dir={run_dir}")

    def start(index: int) -> Running:
        return Running(nodes.on(index, [*commands[index], *words]), ROOT, environment)

    with ExitStack() as stack:
        running = {index: stack.enter_context(start(index)) for index in range(2)}
        wait_until(lambda: len(rows(run_dir)) >= KILLED_AFTER, START_S, f"step {KILLED_AFTER}")
        nodes.power_off(lost, running[lost])
        assert 5 <= rows(run_dir)[-1]["step"] < STEPS, "the run must not end before the node does"
        nodes.power_on(lost)
        running[lost] = stack.enter_context(start(lost))
        ended = [running[index].end(START_S) for index in range(2)]
        assert all(each.left_behind() == [] for each in running.values())
    return ended


@pytest.mark.parametrize(("launcher", "lost"), [(deepspeed, 0), (torchrun, 1)], ids=["deepspeed", "torchrun"])
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint_and_no_bit(
    launcher: Callable[[Nodes, Path], list[list[str]]], lost: int, nodes: Nodes, undisturbed: Curve, tmp_path: Path
) -> None:
    run_dir = tmp_path / "R"
    ended = train_with_a_loss(nodes, launcher(nodes, tmp_path), run_dir, lost)
    assert [each.code for each in ended] == [0, 0], ended
    assert curve(run_dir) == undisturbed
    assert "resumed from" in ended[0].out
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("finished", STEPS)
    [restart] = summary["restarts"]
    assert restart["exit_code"] == 7
    assert restart["step"] >= KILLED_AFTER
    assert restart["by"] == ("torchrun" if launcher is torchrun else "launch script")
    if nodes.are_machines:
        assert set(restart["lost_ranks"]) == {2 * lost, 2 * lost + 1}
        assert "lost the connection to one" in ended[1 - lost].err
