from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.checkpoint.checkpoint_fixtures import Run
from tests.unit.checkpoint.reshard_fixtures import make_run
from trainer.topology.groups import Group, SingleGroup


@pytest.fixture
def control() -> Group:
    """Who agrees: one process that agrees with itself."""
    return SingleGroup()


@pytest.fixture
def run(tmp_path: Path, control: Group) -> Run:
    return Run(tmp_path, control)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run folder with a checkpoint of random tensors, to be resharded."""
    make_run(tmp_path / "source")
    return tmp_path / "source"
