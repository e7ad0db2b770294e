"""What ranks must find alike on every node, or the run would be something else on each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from tests.helpers.dist import run_distributed
from trainer.data.prepare import PreparedData
from trainer.errors import DataError
from trainer.topology.groups import DistGroup

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]


def _problem(rank: int, world_size: int, contents: tuple[str, ...]) -> str:
    from trainer.app import _check_same_data

    handle = dist.group.WORLD
    assert handle is not None
    control = DistGroup(handle, rank, world_size, tuple(range(world_size)))
    data = PreparedData(Path("x"), 100, "uint16", 10, 10, None, f"fingerprint of {rank}", contents[rank])
    try:
        _check_same_data(data, control)
    except DataError as error:
        return str(error)
    return ""


def test_the_same_tokens_everywhere() -> None:
    assert run_distributed(_problem, 2, ("abc", "abc")) == ["", ""]


def test_other_tokens_on_one_node() -> None:
    found = run_distributed(_problem, 2, ("abc", "abd"))
    assert found[0] == found[1]
    assert found[0].startswith("every node must train on the same tokens, but data.cache_dir holds different ones")
