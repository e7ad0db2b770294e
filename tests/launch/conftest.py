from __future__ import annotations

import pytest

from tests.helpers.dist import run_distributed, train_command
from tests.launch.launch_fixtures import SETTINGS, Curve, curve


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """Curve of four ranks that no script starts and nobody disturbs."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "R"
    assert run_distributed(train_command, 4, (*SETTINGS, f"run_dir={run_dir}")) == [0] * 4
    return curve(run_dir)
