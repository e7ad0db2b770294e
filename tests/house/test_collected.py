from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.house.checks import ROOT


def never_entered(tests: Path, left_out: Sequence[str]) -> list[str]:
    """Folders with tests that pytest does not find by itself, because a pattern leaves out a part of their path."""
    folders = {file.parent.relative_to(tests) for file in tests.rglob("test_*.py")}
    return sorted(str(f) for f in folders if any(fnmatch(part, pattern) for part in f.parts for pattern in left_out))


def test_pytest_enters_every_folder_of_tests(pytestconfig: pytest.Config) -> None:
    assert never_entered(ROOT / "tests", pytestconfig.getini("norecursedirs")) == []


def test_a_folder_that_is_never_entered_is_found() -> None:
    assert never_entered(ROOT / "tests", ["*.egg", "build", "dist"]) == ["dist"]
