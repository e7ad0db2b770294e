from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run
from tests.helpers.command import Running, run, trident, wait_until

WITHOUT = """
import sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Gone())
import importlib.metadata
from trainer.doctor import doctor, software_checks, compiler_checks
slow = (software_checks.look_at_imports, compiler_checks.look_at_libraries, compiler_checks.look_at_compiler)
doctor.CHECKS = tuple(check for check in doctor.CHECKS if check.look not in slow)
from trainer.cli import main
sys.exit(main(["doctor", "--json", *sys.argv[1:]]))
"""
"""`trident doctor` without the checks that start other programs, where a package is gone."""


@pytest.mark.parametrize("name", ["hydra", "psutil", "numpy"])
def test_a_broken_installation_is_no_reason_to_fall_silent(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRIDENT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WITHOUT.format(name=name), "layout=dp2"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert len(findings) > 20
    assert done.returncode == (1 if name == "hydra" else 0), done.stdout
    told = [one for one in findings if f"'{name}" in one["found"]]
    assert all(one["fix"] for one in told)
    assert told


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--ssh-port", "0", "--hostfile", "x"], "--ssh-port must be a port, 1 to 65535, but is '0'"),
        (["--ssh-port=22"], "--ssh-port"),
        (["--hostfile", "none"], "--hostfile must name a file, but none cannot be read"),
        (["launch.master_port=70000"], "launch.master_port must be 1 to 65535"),
        (["layout=auto", "train.steps=-1"], "train.steps"),
        (["model.hiden_size=3"], "there is no key 'model.hiden_size'"),
        (["nonsense"], "nonsense"),
        (["--jsn"], "--jsn"),
    ],
)
def test_wrong_words(words: list[str], problem: str, trident: Run) -> None:
    answer = trident("doctor", *words)
    assert answer.code == 2
    assert problem in answer.problems[0]
    assert answer.out == ""


def test_other_names_lead_to_it(trident: Run) -> None:
    assert trident("ds_report").hints == ["did you mean `trident doctor`?"]


def test_health_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    ended = run(trident("doctor", "--health"), tmp_path, 60)
    assert ended.code == 0
    assert re.search(r"ok +progress ", ended.out)
    assert list(tmp_path.iterdir()) == []


def test_a_stop_ends_it_and_all_that_it_asks(tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text('#!/bin/bash\ntouch "$HOME/asked"; sleep 300\n')
    (tmp_path / "ssh").chmod(0o755)
    (tmp_path / "hosts").write_text("a slots=1\n")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    with Running(trident("doctor", "--hostfile", "hosts"), tmp_path, environment) as running:
        wait_until((tmp_path / "asked").exists, 60, "ssh")
        running.process.send_signal(signal.SIGINT)
        ended = running.end(20)
        assert ended.code == 130, ended
        assert running.left_behind() == []


def test_everything_at_once(tmp_path: Path) -> None:
    """The whole command, with what is broken in its surroundings told and with the exit code that says so."""
    blocked = tmp_path / "file"
    blocked.touch()
    environment = {"TRIDENT_CACHE": str(blocked / "cache"), "CUDA_LAUNCH_BLOCKING": "1", "RANK": "3"}
    words = ["doctor", "--json", "layout=dp2", "data=synthetic", "model.vocab_size=256", "run_dir=R"]
    ended = run(trident(*words), tmp_path, 200, environment)
    found = {one["name"]: one for one in json.loads(ended.out)["findings"]}
    assert (ended.code, found["token cache"]["status"]) == (1, "fail"), ended
    assert found["launcher"]["status"] == "fail"
    assert found["CUDA_LAUNCH_BLOCKING"]["status"] == "warn"
    assert found["torch"]["status"] == found["imports"]["status"] == found["DeepSpeed"]["status"] == "ok"
    assert found["run folder"]["found"].startswith(str(tmp_path / "R"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    refused = run(trident("doctor", "layout=dp0"), tmp_path, 60, environment)
    assert (refused.code, len(refused.errors)) == (2, 1), "also where a launcher has left a RANK behind"
