from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.launcher.conftest import wait_until
from trainer.launcher.orphan import _SET_BY_LAUNCHERS, watch_launcher

RANK = """
import pathlib, sys, threading
from trainer.launcher.orphan import watch_launcher
gone = threading.Event()
watch_launcher(gone.set, poll_s=0.05)
pathlib.Path(sys.argv[1], "watching").touch()
pathlib.Path(sys.argv[1], "told" if gone.wait(WAIT_S) else "not told").touch()
"""
LAUNCHER = """
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
while not pathlib.Path(sys.argv[1], "watching").exists(): time.sleep(0.05)
"""


ROOT = Path(__file__).resolve().parents[3]


def start(folder: Path, wait_s: float, **environment: str) -> None:
    """Start a rank by a process that ends as soon as the rank watches."""
    names = {name: value for name, value in os.environ.items() if name not in _SET_BY_LAUNCHERS}
    code = RANK.replace("WAIT_S", str(wait_s))
    subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(folder), code], cwd=ROOT, check=True, timeout=60, env=names | environment
    )


@pytest.mark.parametrize("name", _SET_BY_LAUNCHERS[1:])
def test_a_rank_whose_launcher_died_is_told(name: str, tmp_path: Path) -> None:
    start(tmp_path, 30, **{name: "1"})
    wait_until(lambda: (tmp_path / "told").exists())


def test_a_rank_that_was_started_in_the_background_by_hand_trains_on(tmp_path: Path) -> None:
    start(tmp_path, 0.5)
    wait_until(lambda: (tmp_path / "not told").exists())


def test_a_living_launcher_and_process_one_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    told = threading.Event()
    watched = watch_launcher(told.set, poll_s=0.01)
    assert not told.wait(0.2)
    watched.set()
    before = threading.active_count()
    watch_launcher(told.set, poll_s=0.01, launcher=1)
    assert threading.active_count() <= before
    assert not told.is_set()
