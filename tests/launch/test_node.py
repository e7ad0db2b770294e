"""launch/node.sh: how it sees ranks through, with stand-ins for them, and two nodes that really train."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command import Ended, Running, rows, run, wait_until
from tests.launch.launch_fixtures import LAUNCH, SETTINGS, START_S, Curve, call, curve, stand_in

INTERPRETER = f"""#!/usr/bin/env bash
# Stands in for Python with Trident: `-m trainer train [key=value ...] SCRIPT` runs SCRIPT. Questions get real answers.
case "$1" in
    *facts.py) exec {sys.executable} "${{@:1:$#-1}}" ;;
    -m) eval "${{@: -1}}" ;;
esac
"""
NODE = LAUNCH / "node.sh"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose ranks are shell scripts."""
    return stand_in(tmp_path, INTERPRETER)


def node(script: str, tmp_path: Path, environment: dict[str, str], *options: str) -> Ended:
    return run(["bash", str(NODE), "--ranks-per-node", "3", *options, script], tmp_path, 30, environment)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 75", 75),
        ("exit 2", 2),
        ('[[ "$RANK" != 1 ]] || exit 7', 7),
        ('if [[ "$RANK" == 2 ]]; then exit 5; else sleep 0.3; exit 7; fi', 5),
        ('if [[ "$RANK" == 0 ]]; then kill -KILL $$; else sleep 0.3; exit 7; fi', 137),
    ],
    ids=["done", "stopped", "refused", "one fails", "the first failure counts", "one is killed"],
)
def test_exit_code(script: str, code: int, tmp_path: Path, environment: dict[str, str]) -> None:
    assert node(script, tmp_path, environment).code == code


def test_facts(tmp_path: Path, environment: dict[str, str]) -> None:
    script = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT"'
    pod = {"NNODES": "2", "JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "a", "MASTER_PORT": "7"}
    ended = node(script, tmp_path, {**environment, **pod})
    assert sorted(ended.out.splitlines()) == [f"{3 + rank} {rank} 6 3 a:7" for rank in range(3)]


def test_ranks_that_wait_for_a_lost_one_are_killed(tmp_path: Path, environment: dict[str, str]) -> None:
    begin = time.monotonic()
    ended = node('[[ "$RANK" != 1 ]] || exit 7; exec sleep 60', tmp_path, environment, "--grace", "1")
    assert ended.code == 7
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_once(number: signal.Signals, tmp_path: Path, environment: dict[str, str]) -> None:
    script = "trap 'echo asked; exit 75' USR1; touch here.$RANK; while :; do sleep 0.05; done"
    with Running(["bash", str(NODE), "--ranks-per-node", "3", script], tmp_path, environment) as running:
        wait_until(lambda: len(list(tmp_path.glob("here.*"))) == 3, 20, "the start of three ranks")
        running.process.send_signal(number)
        ended = running.end(20)
        assert running.left_behind() == []
    assert (ended.code, ended.out) == (75, "asked\n" * 3)


def test_asked_before_the_ranks_listen_it_wants_another_run(tmp_path: Path, environment: dict[str, str]) -> None:
    script = "touch here.$RANK; exec sleep 60"
    with Running(["bash", str(NODE), "--ranks-per-node", "3", script], tmp_path, environment) as running:
        wait_until(lambda: len(list(tmp_path.glob("here.*"))) == 3, 20, "the start of three ranks")
        running.process.send_signal(signal.SIGTERM)
        assert running.end(20).code == 75


AGAIN = """
echo $(($(cat count.$RANK 2>/dev/null || echo 0) + 1)) >count.$RANK
n=$(cat count.$RANK)
mkdir -p R/logs
"""
"""Counts the attempts of a rank in `n`."""


def restarted(script: str, tmp_path: Path, environment: dict[str, str], *options: str) -> Ended:
    words = ("--ranks-per-node", "2", "--max-restarts", "2", *options)
    settings = ("data=synthetic", "model.vocab_size=256", "run_dir=R", "launch.restart_backoff_s=0")
    return run(["bash", str(NODE), *words, *settings, AGAIN + script], tmp_path, 60, environment)


def test_a_killed_rank_is_started_again_with_all_of_the_node(tmp_path: Path, environment: dict[str, str]) -> None:
    script = """
    echo "{\\"step\\": $((n * 5))}" >>R/metrics.jsonl
    if [[ "$RANK$n" == 11 ]]; then kill -KILL $$; fi
    echo "rank $RANK, restart ${TRIDENT_RESTART_COUNT:-none}"
    """
    ended = restarted(script, tmp_path, environment)
    assert ended.code == 0, ended
    assert sorted(ended.out.splitlines()) == [
        *("rank 0, restart 1", "rank 0, restart none", "rank 1, restart 1"),
    ]
    assert "starting again in 0 s, from the newest checkpoint (last step logged: 5)" in ended.err


def test_at_most_so_often(tmp_path: Path, environment: dict[str, str]) -> None:
    script = """[[ "$RANK" == 0 ]] || exit 0; echo "{\\"step\\": $n}" >>R/metrics.jsonl; exit 7"""
    ended = restarted(script, tmp_path, environment)
    assert ended.code == 7
    assert (tmp_path / "count.0").read_text() == "3\n"
    assert "warning: not started again: all of --max-restarts=2 restarts are used" in ended.err


def test_not_when_the_same_step_fails_twice(tmp_path: Path, environment: dict[str, str]) -> None:
    ended = restarted("exit 1", tmp_path, environment)
    assert (ended.code, (tmp_path / "count.0").read_text()) == (1, "2\n")
    assert "it failed again after step 0" in ended.err


@pytest.mark.parametrize("script", ["exit 5", 'echo 5 >R/logs/failure; [[ "$RANK" == 1 ]] || exit 7'])
def test_not_for_what_would_fail_again_here_or_on_another_node(
    script: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    ended = restarted(script, tmp_path, environment)
    assert ended.code in (5, 7)
    assert (tmp_path / "count.0").read_text() == "1\n"
    assert "again" not in ended.err


def test_asked_while_it_waits(tmp_path: Path, environment: dict[str, str]) -> None:
    words = ("--ranks-per-node", "1", "--max-restarts", "2", "run_dir=R", "launch.restart_backoff_s=200")
    with Running(["bash", str(NODE), *words, "echo ended; exit 7"], tmp_path, environment) as running:
        assert running.process.stderr is not None
        assert "starting again in 200 s" in running.process.stderr.readline()
        running.process.send_signal(signal.SIGTERM)
        ended = running.end(20)
        assert running.left_behind() == []
    assert (ended.code, ended.out) == (75, "ended\n")


def test_one_node_leaves_the_ranks_to_trident(tmp_path: Path, environment: dict[str, str]) -> None:
    done = call(NODE, "echo alone: ${RANK:-no rank}", environment=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "alone: no rank\n")
    done = call(NODE, "--max-restarts", "3", "--dry-run", "layout=tp2", environment=environment, cwd=tmp_path)
    assert done.stdout.endswith("train layout=tp2 launch.max_restarts=3\n")


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_two_nodes_train_stop_together_and_go_on(tmp_path: Path, undisturbed: Curve) -> None:
    run_dir = tmp_path / "R"
    options = ("--nodes", "2", "--ranks-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", "29874")

    def command(node_rank: int) -> list[str]:
        return ["bash", str(NODE), *options, "--node-rank", str(node_rank), *SETTINGS, f"run_dir={run_dir}"]

    with Running(command(0), tmp_path) as first, Running(command(1), tmp_path) as second:
        wait_until(lambda: len(rows(run_dir)) >= 3, START_S, "the third step")
        # Kubernetes drains one node: the other one hears of it only from its ranks.
        second.process.send_signal(signal.SIGTERM)
        ended = [first.end(60), second.end(60)]
    assert [end.code for end in ended] == [75, 75], ended
    reached = rows(run_dir)[-1]["step"]
    assert 3 <= reached < 60
    with Running(command(0), tmp_path) as first, Running(command(1), tmp_path) as second:
        ended = [first.end(START_S), second.end(60)]
    assert [end.code for end in ended] == [0, 0], ended
    assert f"step_{reached}" in ended[0].out
    assert curve(run_dir) == undisturbed
