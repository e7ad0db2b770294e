from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.launcher.conftest import wait_until
from trainer.launcher.orphan import watch_launcher

RANK = """
import pathlib, sys, threading
from trainer.launcher.orphan import watch_launcher
gone = threading.Event()
watch_launcher(gone.set, poll_s=0.05)
pathlib.Path(sys.argv[1], "watching").touch()
pathlib.Path(sys.argv[1], "told" if gone.wait(30) else "not told").touch()
"""
LAUNCHER = """
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
while not pathlib.Path(sys.argv[1], "watching").exists(): time.sleep(0.05)
"""


def test_a_rank_whose_launcher_died_is_told(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", LAUNCHER, str(tmp_path), RANK], cwd=root, check=True, timeout=60)
    wait_until(lambda: (tmp_path / "told").exists())


def test_a_living_launcher_and_process_one_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    watched = watch_launcher(told.set, poll_s=0.01)
    assert not told.wait(0.2)
    watched.set()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    before = threading.active_count()
    watch_launcher(told.set, poll_s=0.01)
    assert threading.active_count() <= before
