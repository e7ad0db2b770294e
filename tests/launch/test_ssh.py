"""launch/ssh.sh: what it makes of the launcher's end, and runs that really train through stand-ins for pdsh and ssh."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers.command import Running, rows, wait_until
from tests.helpers.dist import run_distributed, train_command
from tests.launch.launch_fixtures import LAUNCH, SETTINGS, START_S, call, curve, stand_in, with_stubs

SSH = LAUNCH / "ssh.sh"
INTERPRETER = """#!/usr/bin/env bash
# Stands in for Python with Trident and DeepSpeed.
case "$*" in
    *"facts.py hosts"*) echo "a 2" ;;
    *"facts.py master"*) echo a ;;
    *"facts.py folder"*) echo "$PWD/R" ;;
    *"facts.py finished"*) [[ -e finished ]] ;;
    *"facts.py again"*) echo "again $3 $4" >>asked && echo "0.1 8" ;;
    *deepspeed.launcher.runner*) eval "${@: -1}" ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose launcher is the last word of the command line."""
    (tmp_path / "hosts").write_text("a slots=2\n")
    return stand_in(tmp_path, INTERPRETER)


def words(script: str) -> list[str]:
    return [str(SSH), "--hostfile", "hosts", "--no-ssh", "--node-rank", "0", script]


@pytest.mark.parametrize("code", [1, 2, 7, 75])
def test_exit_code_of_the_launcher(code: int, tmp_path: Path, environment: dict[str, str]) -> None:
    assert call(*words(f"exit {code}"), environment=environment, cwd=tmp_path).returncode == code


def test_a_launcher_that_ends_well_too_early_is_no_success(tmp_path: Path, environment: dict[str, str]) -> None:
    done = call(*words("exit 0"), environment=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the run must finish, but the launcher ended before it did; see ")
    (tmp_path / "finished").touch()
    assert call(*words("exit 0"), environment=environment, cwd=tmp_path).returncode == 0


def test_asked_before_training_it_ends_the_launcher(tmp_path: Path, environment: dict[str, str]) -> None:
    with Running(["bash", *words("touch here; exec sleep 60")], tmp_path, environment) as running:
        wait_until(lambda: (tmp_path / "here").exists(), 20, "the start of the launcher")
        running.process.send_signal(signal.SIGTERM)
        assert running.end(20).code == 75
        assert running.left_behind() == []


def test_a_lost_rank_is_started_again(tmp_path: Path, environment: dict[str, str]) -> None:
    script = "echo ${TRIDENT_RESTART_COUNT:-0}; [[ -n ${TRIDENT_RESTART_COUNT:-} ]] || exit 247; touch finished"
    done = call(str(SSH), "--max-restarts", "1", *words(script)[1:], environment=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "0\n1\n")
    assert "starting again in 0.1 s, from the newest checkpoint (last step logged: 8)" in done.stderr
    assert (tmp_path / "asked").read_text() == "again 247 1\n"


def test_a_launcher_that_ends_well_too_early_is_started_again(tmp_path: Path, environment: dict[str, str]) -> None:
    script = "[[ -z ${TRIDENT_RESTART_COUNT:-} ]] || touch finished"
    done = call(str(SSH), "--max-restarts", "1", *words(script)[1:], environment=environment, cwd=tmp_path)
    assert (done.returncode, "error:" in done.stderr) == (0, False)
    assert (tmp_path / "asked").read_text() == "again 1 1\n"


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_with_pdsh_it_trains_and_stops_and_without_ssh_it_goes_on(tmp_path: Path) -> None:
    assert run_distributed(train_command, 2, (*SETTINGS, f"run_dir={tmp_path / 'U'}")) == [0, 0]
    (tmp_path / "hosts").write_text("first slots=1\nsecond slots=1\n")
    # What three shells and pdsh's patterns would each make something else of.
    run_dir = tmp_path / 'R $HOME %h "x" [1]*'
    options = ("--hostfile", "hosts", "--master-addr", "127.0.0.1", "--master-port", "29875")
    settings = (*SETTINGS, f"run_dir='{run_dir}'")
    environment = {**with_stubs(), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with Running(["bash", str(SSH), *options, *settings], tmp_path, environment) as running:
        wait_until(lambda: len(rows(run_dir)) >= 3, START_S, "the third step")
        running.process.send_signal(signal.SIGUSR1)
        ended = running.end(90)
        assert running.left_behind() == []
    assert ended.code == 75, ended.out + ended.err
    assert "asked to stop: saving" in ended.err
    command = ["bash", str(SSH), *options, "--no-ssh", "--node-rank"]
    with (
        Running([*command, "0", *settings], tmp_path, environment) as first,
        Running([*command, "1", *settings], tmp_path, environment) as second,
    ):
        ends = [first.end(START_S), second.end(60)]
    assert [end.code for end in ends] == [0, 0], ends
    assert curve(run_dir) == curve(tmp_path / "U")
