from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.unit.checkpoint.checkpoint_fixtures import Run
from tests.unit.checkpoint.reshard_fixtures import make_run
from trainer.topology.groups import DistGroup


@pytest.fixture
def control() -> Iterator[DistGroup]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    handle = dist.group.WORLD
    assert handle is not None
    group = DistGroup(handle, 0, 1, (0,))
    yield group
    dist.destroy_process_group()
    # The last reference: if garbage kept it, a rank that another test forks might collect it, and wait forever for
    # the threads of a process group that only its parent has.
    object.__setattr__(group, "process_group", None)


@pytest.fixture
def run(tmp_path: Path, control: DistGroup) -> Run:
    return Run(tmp_path, control)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run folder with a checkpoint of random tensors, to be resharded."""
    make_run(tmp_path / "source")
    return tmp_path / "source"
