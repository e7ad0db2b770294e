from __future__ import annotations

import errno
import threading
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from tests.helpers.dist import run_distributed
from tests.unit.checkpoint.checkpoint_fixtures import (
    FULL,
    KINDS,
    TENSOR_FILE,
    FakeEngine,
    Run,
    config_of,
    plan_of,
    tensors_of,
)
from trainer.checkpoint import fragments as fragment_files
from trainer.checkpoint.manifest import check_content
from trainer.checkpoint.resume import checkpoint_to_resume, load
from trainer.checkpoint.store import CheckpointStore
from trainer.config.schema import LayoutConfig
from trainer.engine.face import Fragment
from trainer.errors import CheckpointError, StorageError, TridentError
from trainer.mesh import Mesh
from trainer.run_paths import CONFIG
from trainer.topology.dist_group import DistGroup, make_groups
from trainer.topology.groups import Group, ParallelGroups

pytestmark = pytest.mark.dist
TIMEOUT_S = 90
FULL_DISK = OSError(errno.ENOSPC, "No space left on device")
FILES = [f"tensors/rank_{rank:05d}.safetensors" for rank in range(2)]


def groups_of(grid: Mesh) -> tuple[ParallelGroups, Group]:
    groups = make_groups(grid, torch.device("cpu"), timedelta(seconds=60))
    return groups, groups.control


def run_of(run_dir: Path) -> Run:
    groups, control = groups_of(Mesh(1, 1, 2))
    engine = FakeEngine(groups.rank, groups.tensor.rank, groups.tensor.size)
    plan = plan_of(every=1, layout=LayoutConfig(tensor_parallel_size=2))
    return Run(run_dir, control, plan, engine=engine, groups=groups)


def full(*_: object, **__: object) -> None:
    raise FULL_DISK


def save_on_two_ranks(
    rank: int, world_size: int, run_dir: Path, failing_rank: int | None, where: str
) -> tuple[str, str, int]:
    run = run_of(run_dir)
    run.steps(1)
    run.state.step = 2
    if rank == failing_rank == failing_rank:
        mock.patch(f"trainer.checkpoint.{where}", full).start()
    try:
        run.hook.save()
    except TridentError as error:
        return type(error).__name__, str(error), error.exit_code
    return "ok", "", 0


@pytest.mark.parametrize(
    ("failing_rank", "where"),
    [
        (None, ""),
        (0, "save.write_fragments"),
        (1, "fragments.save_file"),
        (1, "save.file_facts"),
        (0, "save.write_atomically"),
        (0, "store.sync_folder"),
    ],
)
def test_ranks_save_together_or_not_at_all(tmp_path: Path, failing_rank: int | None, where: str) -> None:
    outcomes = run_distributed(save_on_two_ranks, 2, tmp_path, failing_rank, where, timeout_s=TIMEOUT_S)
    store = CheckpointStore(tmp_path)
    assert not list(store.folder.glob(".step_*"))
    found = store.newest_valid()
    assert found is not None
    check_content(*found)
    saved = tensors_of(*found)
    if failing_rank is None:
        assert [outcome[0] for outcome in outcomes] == ["ok", "ok"]
        assert store.steps() == [1, 2]
    else:
        assert [(kind, code) for kind, _, code in outcomes] == [("StorageError", 8)] * 2
        assert outcomes[0][1] == outcomes[1][1]
        # With its name on it, it is whole, even though the disk failed right after.
        assert store.steps() == ([1, 2] if where == "store.sync_folder" else [1])
    assert torch.equal(saved["weight"], FULL + found[1].step)
    assert torch.equal(saved["exp_avg_sq"], 100 * (FULL + found[1].step))
    assert found[1].files.keys() == {*FILES, CONFIG}


def save_beside_the_training(rank: int, world_size: int, run_dir: Path, failing_rank: int | None) -> list[str]:
    """Return how each step ended on this rank. Rank 1 writes only after both ranks trained two steps more."""
    groups, control = groups_of(Mesh(1, 1, 2))
    handle = dist.new_group(backend="gloo")
    background = DistGroup(rank, world_size, handle, (0, 1))
    plan = plan_of(every=2, layout=LayoutConfig(tensor_parallel_size=2), asynchronous=True)
    engine = FakeEngine(groups.rank, groups.tensor.rank, groups.tensor.size)
    run = Run(run_dir, control, plan, engine=engine, groups=groups, background=background)
    trained = threading.Event()
    write = fragment_files.write_fragments

    def held(path: Path, fragments: Iterable[Fragment]) -> bool:
        assert rank == 0 or trained.wait(TIMEOUT_S)
        if rank == failing_rank:
            raise FULL_DISK
        return write(path, fragments)

    mock.patch("trainer.checkpoint.save.write_fragments", held).start()
    seen = []
    run.steps(2)
    for step in range(3, 8):
        run.state.step = step
        if step == 5:
            trained.set()
            under_way = run.hook._under_way
            assert under_way is None or under_way[1].wait(TIMEOUT_S)
        try:
            # Not a step that saves by itself.
            run.hook.on_step(2 * step + 1)
        except StorageError as error:
            seen.append(str(error.exit_code))
            break
        seen.append(",".join(map(str, run.store.steps())))
    return seen


@pytest.mark.parametrize("failing_rank", [None, 0, 1])
def test_ranks_find_out_together_how_a_save_in_the_background_ended(tmp_path: Path, failing_rank: int | None) -> None:
    first, second = run_distributed(save_beside_the_training, 2, tmp_path, failing_rank, timeout_s=TIMEOUT_S)
    assert first == second
    assert first == (["", "", "2", "2", "2"] if failing_rank is None else ["", "", "8"])
    assert not list((tmp_path / "checkpoints").glob(".step_*"))


def save_without_a_shared_disk(rank: int, world_size: int, run_dir: Path) -> str:
    run = run_of(run_dir / f"node{rank}")
    with pytest.raises(StorageError, match="run_dir must be on a file system that all nodes share") as caught:
        run.steps(1)
    assert run.store.steps() == []
    return str(caught.value)


def test_nodes_that_do_not_share_a_disk_are_told_so_instead_of_losing_their_part(tmp_path: Path) -> None:
    outcomes = run_distributed(save_without_a_shared_disk, 2, tmp_path, timeout_s=TIMEOUT_S)
    assert outcomes[0] == outcomes[1]


def resume_on_two_ranks(rank: int, world_size: int, run_dir: Path, wanted: str) -> tuple[object, ...]:
    """Return what this rank resumed and which files it read, or what it raised."""
    from trainer.checkpoint import manifest

    groups, control = groups_of(Mesh(1, 1, 2))
    read: list[str] = []
    original = manifest.file_facts

    def spy(path: Path) -> manifest.FileFacts:
        read.append(path.name)
        return original(path)

    manifest.file_facts = spy
    engine = FakeEngine()
    try:
        found = checkpoint_to_resume(config_of(resume=wanted), CheckpointStore(run_dir), control)
        assert found is not None
        load(found, engine, plan_of(layout=LayoutConfig(tensor_parallel_size=2)), groups)
    except TridentError as error:
        return type(error).__name__, str(error), error.exit_code
    return found[1].step, {kind: tensor.tolist() for kind, tensor in engine.loaded.items()}, sorted(read)


def save_steps(rank: int, world_size: int, run_dir: Path, last: int) -> None:
    run_of(run_dir).steps(last)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("saved")
    run_distributed(save_steps, 2, run_dir, 2, timeout_s=TIMEOUT_S)
    return run_dir


def test_ranks_share_the_reading_and_load_their_shards(saved: Path) -> None:
    outcomes = run_distributed(resume_on_two_ranks, 2, saved, "auto", timeout_s=TIMEOUT_S)
    for rank, (step, loaded, _) in enumerate(outcomes):
        assert step == 2
        expected = (FULL + 2)[4 * rank : 4 * rank + 4]
        assert loaded == {kind: (expected * 10**index).tolist() for index, kind in enumerate(KINDS)}
    assert sorted(outcomes[0][2] + outcomes[1][2]) == sorted(Path(name).name for name in (*FILES, CONFIG))


@pytest.mark.parametrize("damaged", [*FILES, CONFIG])
def test_damage_that_one_rank_sees_turns_all_of_them_to_the_older_one(
    saved: Path, damaged: str, tmp_path: Path
) -> None:
    import shutil

    run_dir = tmp_path / "run"
    shutil.copytree(saved, run_dir)
    path = CheckpointStore(run_dir).path(2) / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    outcomes = run_distributed(resume_on_two_ranks, 2, run_dir, "auto", timeout_s=TIMEOUT_S)
    assert [outcome[0] for outcome in outcomes] == [1, 1]
    name, fork = str(path.parents[damaged.count("/")]), tmp_path / "fork"
    named = run_distributed(resume_on_two_ranks, 2, fork, name, timeout_s=TIMEOUT_S)
    assert {outcome[0] for outcome in named} == {CheckpointError.__name__}
    assert named[0] == named[1]
    assert str(path) in named[0][1]
    assert named[0][2] == 4


def test_the_file_of_the_first_rank_is_where_one_rank_alone_writes_it() -> None:
    assert FILES[0] == TENSOR_FILE
