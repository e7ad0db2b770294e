"""Whenever the machine stops while it reshards, the new run folder holds no checkpoint or the whole one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.unit.checkpoint.crash_fixtures import Disk, Tree, plant, record
from tests.unit.checkpoint.reshard_fixtures import STEP, checkpoint_of, reshard, same, tensors_of
from trainer.checkpoint.manifest import check_content, read_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import CheckpointError


def found_in(tree: Tree, scratch: Path, expected: dict[str, torch.Tensor]) -> bool:
    """Return whether there is a checkpoint; one that is not whole is an error."""
    plant(scratch, tree)
    try:
        target = scratch / "target"
        if not CheckpointStore(target).steps():
            return False
        assert CheckpointStore(target).steps() == [STEP]
        check_content(checkpoint_of(target), read_manifest(checkpoint_of(target)))
        assert same(tensors_of(checkpoint_of(target)), expected)
        # Ready to go on as well.
        assert {"config.yaml", "plan.json", "tokenizer"} <= {path.name for path in target.iterdir()}
        return True
    finally:
        shutil.rmtree(scratch)


def crash_everywhere(source: Path, tmp_path: Path) -> None:
    """Crash at every moment, in every way."""
    disk, scratch = tmp_path / "disk", tmp_path / "scratch"
    disk.mkdir()
    expected = tensors_of(checkpoint_of(source))
    with record(disk) as recording:
        assert reshard(source, disk / "target", "layout=dp2") == 0
    seen: dict[tuple[tuple[str, bytes | None], ...], bool] = {}

    def found(tree: Tree) -> bool:
        key = tuple(sorted(tree.items()))
        if key not in seen:
            seen[key] = found_in(tree, scratch, expected)
        return seen[key]

    moments = len(recording.operations) + 1
    assert moments > 25
    on_the_way = {found(tree) for moment in range(moments) for tree in Disk(recording, moment).crashes()}
    at_the_end = {found(tree) for tree in Disk(recording, moments).crashes()}
    assert len(seen) > 20
    assert on_the_way == {False, True}
    assert at_the_end == {True}, "what was said to be written is durable"


def test_after_a_crash_there_is_none_or_a_whole_one(source: Path, tmp_path: Path) -> None:
    crash_everywhere(source, tmp_path)


def _lazy_tensors() -> AbstractContextManager[object]:
    lazy = SimpleNamespace(**{**vars(os), "fsync": lambda handle: None})
    return mock.patch("trainer.checkpoint.container.os", lazy)


def _lazy_folders() -> AbstractContextManager[object]:
    return mock.patch("trainer.new_run.sync_folder", return_value=None)


@pytest.mark.parametrize("lazy", [_lazy_tensors, _lazy_folders])
def test_what_is_not_synced_is_noticed(
    source: Path, tmp_path: Path, lazy: Callable[[], AbstractContextManager[object]]
) -> None:
    with lazy(), pytest.raises((AssertionError, CheckpointError)):
        crash_everywhere(source, tmp_path)
