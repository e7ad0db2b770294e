from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.house.checks import ROOT

CONFTEST = """
import pytest

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from tests.helpers.two_sides import TwoSides
    return TwoSides(config, log)
"""
DIES = "import os, signal\ndef test_dies(): os.kill(os.getpid(), signal.SIGKILL)\n"


def test_a_session_whose_processes_die_runs_all_other_tests_and_ends(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name in ("a", "b", "c", "d", "f", "g", "h"):
        (tmp_path / f"test_{name}.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    for name in ("e", "i"):
        (tmp_path / f"test_{name}.py").write_text(f"def test_one(): pass\n{DIES}def test_two(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "2 failed, 18 passed" in done.stdout
    for name in ("e", "i"):
        assert f"crashed while running 'test_{name}.py::test_dies'" in done.stdout
