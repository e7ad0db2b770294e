from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.made_runs import CRASHED, FAILED, FINISHED, TROUBLED, make_run, make_sweep


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that finished, crashed, failed, one with troubles, and a sweep of 12."""
    folder = tmp_path_factory.mktemp("made")
    for name, run in {"finished": FINISHED, "crashed": CRASHED, "failed": FAILED, "troubled": TROUBLED}.items():
        make_run(folder / name, replace(run, log_every=10 if name != "finished" else 1))
    make_sweep(folder / "sweep")
    return folder
