from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.sides import side_of
from tests.house.checks import ROOT

CONFTEST = """
import pytest

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from tests.helpers.sides import Sides
    return Sides(config, log)
"""
DIES = "import os, signal\ndef test_dies(): os.kill(os.getpid(), signal.SIGKILL)\n"


FOUR = "import time\ndef test_a(): time.sleep(0.2)\ndef test_b(): pass\ndef test_c(): pass\ndef test_d(): pass\n"


def session(folder: Path, processes: int) -> str:
    """Run the tests of a folder in several processes and return what is said."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\nnorecursedirs = .*\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", str(processes), "-p", "no:cacheprovider", str(folder)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def test_each_process_begins_with_a_side_of_its_own_and_helps_when_that_is_done(tmp_path: Path) -> None:
    folders = ("dist", "e2e", "launch", "chaos", "unit", "house")
    files = [f"tests/{folder}/test_{folder}_{number}.py" for folder in folders for number in range(3)]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(FOUR)
    said = session(tmp_path, 3)
    assert "72 passed" in said
    ran: dict[str, list[str]] = {}
    for who, file in re.findall(r"\[(gw\d)\] .*PASSED (tests/.*)::test_a", said):
        ran.setdefault(who, []).append(file)
    assert sorted(file for several in ran.values() for file in several) == sorted(files)
    assert len([who for who, several in ran.items() if any("chaos" in file for file in several)]) == 1
    assert {several[0].split("/")[1] for several in ran.values()} == {"e2e", "chaos", "house"}
    for several in ran.values():
        sides = [side_of(file) for file in several]
        assert sides == sorted(sides, key=lambda side: side != sides[0]), "own ones first"


def test_a_session_whose_processes_die_runs_all_other_tests_and_ends(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "f", "g", "h"):
        (tmp_path / f"test_{name}.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    for name in ("e", "i"):
        (tmp_path / f"test_{name}.py").write_text(f"def test_one(): pass\n{DIES}def test_two(): pass\n")
    said = session(tmp_path, 2)
    assert "2 failed, 18 passed" in said
    for name in ("e", "i"):
        assert f"crashed while running 'test_{name}.py::test_dies'" in said
