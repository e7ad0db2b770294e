from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.helpers.dist import run_distributed
from trainer.checkpoint.hook import CheckpointHook
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.weights import read_weights
from trainer.config.plan import make_plan
from trainer.config.schema import LayoutConfig, ModelConfig, TridentConfig
from trainer.engine.face import Engine
from trainer.errors import StorageError, TridentError
from trainer.loop.state import TrainState
from trainer.tensor_parallel.shard import ShardSpec, shard
from trainer.topology.grid import Grid
from trainer.topology.groups import DistGroup, make_groups

pytestmark = pytest.mark.dist
TIMEOUT_S = 60
FULL = torch.arange(8.0)
SPEC = ShardSpec("w", (8,), 0, (8,))
FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


class RankEngine:
    """What a hook asks of an engine: one file and one shard a rank."""

    def __init__(self, rank: int, tp_rank: int = 0, tp: int = 1) -> None:
        self.rank, self.tp_rank, self.tp = rank, tp_rank, tp
        self.fails: Exception | None = None
        self.saves = 0

    def save(self, folder: Path) -> None:
        self.saves += 1
        folder.mkdir(exist_ok=True)
        (folder / f"rank{self.rank}.pt").write_bytes(b"state")
        if self.fails is not None:
            raise self.fails

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        # ZeRO-3 gathers here: a rank that does not come leaves the others waiting.
        dist.barrier()
        return {"w": shard(FULL + self.saves, SPEC, self.tp_rank, self.tp)}

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        return {"w": SPEC}


def hook_of(grid: Grid, store: CheckpointStore, engine: RankEngine, state: TrainState) -> CheckpointHook:
    layout = LayoutConfig(tensor_parallel_size=grid.tensor_parallel_size, data_parallel_size=grid.data_parallel_size)
    plan = make_plan(TridentConfig(model=ModelConfig(seq_length=16), layout=layout), 100)
    groups = make_groups(grid, torch.device("cpu"))
    engine.tp_rank, engine.tp = groups.tensor.rank, groups.tensor.size
    handle = dist.group.WORLD
    assert handle is not None
    control = DistGroup(handle, groups.rank, grid.size, tuple(range(grid.size)))
    return CheckpointHook(store, cast(Engine, engine), plan, state, groups, control)


def full(*_: object) -> None:
    raise FULL_DISK


def save_on_two_ranks(
    rank: int, world_size: int, run_dir: Path, failing_rank: int | None, where: str
) -> tuple[str, str, int]:
    engine, state = RankEngine(rank), TrainState(1)
    hook = hook_of(Grid(1, 1, 2), CheckpointStore(run_dir), engine, state)
    hook.save()
    state.step = 2
    if rank == failing_rank and where == "engine":
        engine.fails = FULL_DISK
    elif rank == failing_rank:
        mock.patch("trainer.checkpoint.hook.write_weights", full).start()
    try:
        hook.save()
    except TridentError as error:
        return type(error).__name__, str(error), error.exit_code
    return "ok", "", 0


@pytest.mark.parametrize(
    ("failing_rank", "where"), [(None, ""), (0, "engine"), (1, "engine"), (0, "weights"), (1, "weights")]
)
def test_ranks_save_together_or_not_at_all(tmp_path: Path, failing_rank: int | None, where: str) -> None:
    outcomes = run_distributed(save_on_two_ranks, 2, tmp_path, failing_rank, where, timeout_s=TIMEOUT_S)
    store = CheckpointStore(tmp_path)
    assert not list(store.folder.glob(".step_*"))
    found = store.newest_valid()
    assert found is not None
    path, manifest = found
    if failing_rank is None:
        assert [outcome[0] for outcome in outcomes] == ["ok", "ok"]
        assert store.steps() == [1, 2]
        assert torch.equal(read_weights(path / "weights")["w"], FULL + 2)
    else:
        assert [(kind, code) for kind, _, code in outcomes] == [("StorageError", 8)] * 2
        assert outcomes[0][1] == outcomes[1][1]
        assert store.steps() == [1]
        assert torch.equal(read_weights(path / "weights")["w"], FULL + 1)
    ranks = {f"engine/rank{rank}.pt" for rank in range(2)}
    assert manifest.files.keys() == ranks | {f"weights/stage0_tp{rank}.safetensors" for rank in range(2)}


def save_without_a_shared_disk(rank: int, world_size: int, run_dir: Path) -> str:
    store, engine = CheckpointStore(run_dir / f"node{rank}"), RankEngine(rank)
    hook = hook_of(Grid(1, 2, 1), store, engine, TrainState(1))
    with pytest.raises(StorageError, match="run_dir must be on a file system that all nodes share") as caught:
        hook.save()
    assert engine.saves == 0
    assert store.steps() == []
    return str(caught.value)


def test_nodes_that_do_not_share_a_disk_are_told_so_instead_of_losing_their_part(tmp_path: Path) -> None:
    outcomes = run_distributed(save_without_a_shared_disk, 2, tmp_path, timeout_s=TIMEOUT_S)
    assert outcomes[0] == outcomes[1]
