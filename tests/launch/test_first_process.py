"""The first process of a container, which the kernel hands no signal that it does not handle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.helpers.command import Running, rows, run, wait_until
from tests.launch.launch_fixtures import DOCKER, LAUNCH, SETTINGS, START_S, stand_in

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def _cannot() -> bool:
    return (
        shutil.which("unshare") is None
        or subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode != 0
    )


pytestmark = pytest.mark.skipif(_cannot(), reason="needs the right to make a namespace of processes")


@contextmanager
def first_process(command: Sequence[str], cwd: Path, **variables: str) -> Iterator[tuple[Running, psutil.Process]]:
    """Run a command as process 1 of a namespace."""
    with Running([*UNSHARE, *command], cwd, {"TRIDENT_LAUNCH": str(LAUNCH), **variables}) as running:
        wait_until(lambda: psutil.Process(running.process.pid).children(), 20, "the start of the command")
        yield running, psutil.Process(running.process.pid).children()[0]


@pytest.mark.parametrize("ranks", ["", "2"], ids=["one command", "a node's ranks"])
def test_a_stop_before_anything_listens_is_heard(ranks: str, tmp_path: Path) -> None:
    # The first thing that is asked of Python is whether it has Trident; that takes a while on a busy disk.
    slow = stand_in(tmp_path, "#!/usr/bin/env bash\ntouch asked\nsleep 1.5\n[[ $* == *import* ]] || exec sleep 60\n")
    command = ["bash", str(DOCKER / "entrypoint.sh"), "train", "layout=dp2"]
    with first_process(command, tmp_path, **slow, RANKS_PER_NODE=ranks) as (running, process):
        wait_until(lambda: (tmp_path / "asked").exists(), 20, "the search for Trident")
        process.send_signal(signal.SIGTERM)
        ended = running.end(20)
    assert ended.code == 75
    assert ended.seconds < 15


def test_an_init_is_put_before_a_command_that_is_started_without(tmp_path: Path) -> None:
    tini = tmp_path / "tini"
    tini.write_text('#!/usr/bin/env bash\necho "tini for $$: $*" >"$HOME/told"\n')
    tini.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    assert run([*UNSHARE, "bash", str(DOCKER / "entrypoint.sh"), "train", "a b"], tmp_path, 20, variables).code == 0
    assert (tmp_path / "told").read_text() == f"tini for 1: -- bash {DOCKER / 'entrypoint.sh'} train a b\n"


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_training_as_the_first_process_saves_and_leaves_nothing(tmp_path: Path) -> None:
    words = [word for word in SETTINGS if not word.startswith("train.steps")]
    command = [sys.executable, "-m", "trainer", "train", *words, "train.steps=100000", f"run_dir={tmp_path / 'R'}"]
    with first_process(command, tmp_path) as (running, process):
        wait_until(lambda: len(rows(tmp_path / "R")) >= 2, START_S, "the second step")
        process.send_signal(signal.SIGTERM)
        ended = running.end(60)
        assert running.left_behind() == []
    assert ended.code == 75, ended.err
    assert (tmp_path / "R" / "checkpoints" / "latest").exists()
