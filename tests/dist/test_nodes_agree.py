"""What ranks must find alike on every node, or the run would be something else on each."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch.distributed as dist

from tests.helpers.dist import run_distributed, train_command
from tests.helpers.shards import unread
from trainer.errors import DataError
from trainer.topology.dist_group import DistGroup

pytestmark = [pytest.mark.dist, pytest.mark.timeout(120)]


def _problem(rank: int, world_size: int, contents: tuple[str, ...]) -> str:
    from trainer.app import _check_same_data

    handle = dist.group.WORLD
    assert handle is not None
    control = DistGroup(rank, world_size, handle, tuple(range(world_size)))
    hosts = [socket.gethostname()] * world_size
    data = unread(Path("x"), 100, contents[rank])
    try:
        _check_same_data(data, control, hosts)
    except DataError as error:
        return str(error)
    return ""


def _warnings(rank: int, world_size: int, hosts: Sequence[str], words: Sequence[str]) -> list[str]:
    found: list[str] = []
    with patch("socket.gethostname", lambda: hosts[rank]), patch("trainer.app.warn", found.append):
        assert train_command(rank, world_size, words) == 0
    return found


@pytest.mark.parametrize("hosts", [("a", "a"), ("a", "b")])
def test_tensor_ranks_on_several_machines_are_warned_about(hosts: Sequence[str], tmp_path: Path) -> None:
    words = ("data=synthetic", "model.vocab_size=256", "model.hidden_size=32", "model.seq_length=32", "layout=tp2")
    more = ("train.steps=1", "checkpoint=none", "logging=local", "runtime.device=cpu", f"run_dir={tmp_path / 'R'}")
    first, second = run_distributed(_warnings, 2, hosts, (*words, *more))
    assert second == []
    assert len(first) == (hosts[0] != hosts[1])
    if first:
        assert first[0].startswith(
            "tensor-parallel ranks should share a machine, but 1 of 1 group does not (ranks 0, 1 "
        )


def test_the_same_tokens_everywhere() -> None:
    assert run_distributed(_problem, 2, ("abc", "abc")) == ["", ""]


def test_other_tokens_on_one_node() -> None:
    found = run_distributed(_problem, 2, ("abc", "abd"))
    assert found[0] == found[1]
    assert found[0].startswith("every node must train on the same tokens, but what rank 1 (")
