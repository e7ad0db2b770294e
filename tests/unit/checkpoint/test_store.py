from __future__ import annotations

import errno
from pathlib import Path

import pytest

from trainer.checkpoint.manifest import MANIFEST, Manifest, describe_layout, file_facts
from trainer.checkpoint.store import CheckpointStore, find_checkpoint
from trainer.config.plan import make_plan
from trainer.config.schema import TridentConfig
from trainer.errors import CheckpointError, StorageError
from trainer.loop.state import TrainState
from trainer.run_paths import LATEST


def write_checkpoint(folder: Path, step: int) -> Path:
    state = folder / "tensors" / "state"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"x" * (step + 1))
    layout = describe_layout(make_plan(TridentConfig(), 100))
    files = {"tensors/state": file_facts(state)}
    manifest = Manifest(step, 100, TrainState(step, sample_length=8).to_dict(), {}, 4.5, layout, {}, files)
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def fill(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        write_checkpoint(store.path(step), step)


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def test_a_run_without_checkpoints_has_none(store: CheckpointStore) -> None:
    assert store.steps() == []
    assert store.newest_valid() is None
    assert store.set_aside_after(0) == []
    store.delete_old(1)


def test_steps_are_ordered_as_numbers(store: CheckpointStore) -> None:
    fill(store, 10, 9, 100, 0)
    assert store.steps() == [0, 9, 10, 100]
    found = store.newest_valid()
    assert found is not None
    assert (found[0].name, found[1].step) == ("step_100", 100)


@pytest.mark.parametrize(
    "stray", ["step_", "step_x", "step_07", "step_²", "step_-3", "step_5 copy", "xstep_5", "step_5.bak"]
)
def test_names_that_are_not_ours_are_no_checkpoints_and_are_never_deleted(store: CheckpointStore, stray: str) -> None:
    fill(store, 1, 2, 3)
    write_checkpoint(store.folder / stray, 7)
    assert store.steps() == [1, 2, 3]
    found = store.newest_valid()
    assert found is not None
    assert found[1].step == 3
    store.delete_old(1)
    store.set_aside_after(3)
    assert names(store) == sorted([stray, "step_3"])


def test_files_named_like_a_checkpoint_are_none(store: CheckpointStore) -> None:
    fill(store, 1)
    (store.folder / "step_9").write_text("a file")
    assert store.steps() == [1]
    store.delete_old(1)
    assert names(store) == ["step_1", "step_9"]


def test_nothing_outside_is_deleted_through_a_link(store: CheckpointStore, tmp_path: Path) -> None:
    outside = write_checkpoint(tmp_path / "elsewhere", 1)
    fill(store, 2, 3)
    store.path(1).symlink_to(outside)
    (store.folder / ".step_8.partial").symlink_to(outside)
    store.delete_old(1)
    assert (outside / MANIFEST).is_file()
    assert (outside / "tensors" / "state").is_file()
    assert store.steps()[-1] == 3
    assert not store.path(2).exists()


@pytest.mark.parametrize("damage", ["manifest gone", "manifest broken", "file gone", "file short"])
def test_damaged_checkpoints_are_skipped_with_a_warning_each(
    store: CheckpointStore, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, 1, 2, 30, 4)
    for step in (30, 4):
        manifest, state = store.path(step) / MANIFEST, store.path(step) / "tensors" / "state"
        if damage == "manifest gone":
            manifest.unlink()
        elif damage == "manifest broken":
            manifest.write_text(manifest.read_text()[:50])
        elif damage == "file gone":
            state.unlink()
        else:
            state.write_bytes(b"x")
    found = store.newest_valid()
    assert found is not None
    assert found[0] == store.path(2)
    warnings = capsys.readouterr().err.splitlines()
    assert [line.startswith("warning: skipping a damaged checkpoint: ") for line in warnings] == [True, True]
    assert "step_30" in warnings[0]
    assert "step_4" in warnings[1]


def test_there_is_none_where_all_are_damaged(store: CheckpointStore) -> None:
    fill(store, 1)
    (store.path(1) / MANIFEST).unlink()
    assert store.newest_valid() is None


def test_latest_names_a_step_and_is_replaced_whole(store: CheckpointStore) -> None:
    store.point_at(9)
    store.point_at(10)
    assert (store.folder / LATEST).read_text() == "step_10\n"
    assert names(store) == [LATEST]


def test_latest_on_a_full_disk_stays_the_old_one(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.point_at(9)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="latest must be writable, but the disk is full"):
        store.point_at(10)
    assert (store.folder / LATEST).read_text() == "step_9\n"
    assert names(store) == [LATEST]


@pytest.mark.parametrize(("keep", "kept"), [(1, [10]), (2, [9, 10]), (4, [1, 2, 9, 10]), (9, [1, 2, 9, 10])])
def test_the_newest_are_kept_and_half_written_ones_go(store: CheckpointStore, keep: int, kept: list[int]) -> None:
    fill(store, 1, 10, 2, 9)
    store.point_at(10)
    write_checkpoint(store.temporary_path(11), 11)
    store.delete_old(keep)
    assert store.steps() == kept
    assert not store.temporary_path(11).exists()
    assert (store.folder / LATEST).is_file()


def test_publishing_gives_the_name(store: CheckpointStore) -> None:
    write_checkpoint(store.temporary_path(3), 3)
    store.publish(3)
    assert names(store) == ["step_3"]


def test_publishing_replaces_the_same_step_and_leaves_nothing(store: CheckpointStore) -> None:
    fill(store, 3)
    (store.path(3) / "old").write_text("x")
    write_checkpoint(store.folder / ".step_3.replaced.partial", 3)
    write_checkpoint(store.temporary_path(3), 3)
    store.publish(3)
    assert names(store) == ["step_3"]
    assert not (store.path(3) / "old").exists()


def test_a_name_that_cannot_be_given_stays_with_the_old_one(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 3)
    write_checkpoint(store.temporary_path(3), 3)
    (store.path(3) / "old").write_text("x")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == store.temporary_path(3):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        store.publish(3)
    assert (store.path(3) / "old").exists()
    assert store.newest_valid() is not None


def test_a_half_written_checkpoint_is_never_found(store: CheckpointStore) -> None:
    write_checkpoint(store.temporary_path(11), 11)
    assert store.steps() == []
    assert store.newest_valid() is None


def test_later_ones_are_set_aside_and_never_deleted(store: CheckpointStore) -> None:
    fill(store, 5, 6, 10, 100)
    assert store.set_aside_after(6) == [store.folder / "step_10.damaged", store.folder / "step_100.damaged"]
    assert store.steps() == [5, 6]
    assert store.set_aside_after(6) == []
    fill(store, 10)
    assert store.set_aside_after(6) == [store.folder / "step_10.damaged.2"]
    store.delete_old(keep=1)
    names_kept = ["step_10.damaged", "step_10.damaged.2", "step_100.damaged", "step_6"]
    assert sorted(path.name for path in store.folder.iterdir()) == names_kept
    assert find_checkpoint(store.folder / "step_10.damaged")[1].step == 10


class TestFind:
    def test_a_run_its_checkpoints_folder_or_a_checkpoint(self, store: CheckpointStore, tmp_path: Path) -> None:
        fill(store, 3, 20)
        for path, step in ((tmp_path, 20), (store.folder, 20), (store.path(3), 3)):
            found, manifest = find_checkpoint(path)
            assert (found, manifest.step) == (store.path(step), step)

    def test_a_checkpoint_that_was_moved_away_under_another_name(self, tmp_path: Path) -> None:
        best = write_checkpoint(tmp_path / "best", 5)
        assert find_checkpoint(best)[0] == best

    def test_a_run_whose_name_begins_like_a_checkpoint(self, tmp_path: Path) -> None:
        run = CheckpointStore(tmp_path / "step_size_sweep")
        fill(run, 4)
        assert find_checkpoint(tmp_path / "step_size_sweep")[1].step == 4

    def test_the_file_latest_is_followed(self, store: CheckpointStore) -> None:
        fill(store, 3, 20)
        store.point_at(3)
        assert find_checkpoint(store.folder / LATEST)[0] == store.path(3)
        store.point_at(4)
        with pytest.raises(CheckpointError, match=r"step_4 must be .* but does not exist") as caught:
            find_checkpoint(store.folder / LATEST)
        assert caught.value.hints == (f"{store.folder} holds step_3, step_20",)

    def test_a_latest_of_another_program_is_named(self, tmp_path: Path) -> None:
        (tmp_path / LATEST).write_text("global_step100")
        with pytest.raises(CheckpointError, match=r"must name a checkpoint beside it .* but says 'global_step100'"):
            find_checkpoint(tmp_path / LATEST)

    def test_what_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="must be a run folder or a checkpoint, but does not exist"):
            find_checkpoint(tmp_path / "nothing")

    def test_a_run_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="must hold a whole checkpoint"):
            find_checkpoint(tmp_path)
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="must be the folder of a run or of a checkpoint, but is a file"):
            find_checkpoint(tmp_path / "file")

    def test_a_damaged_one_that_is_named_is_an_error_and_no_other_is_taken(self, store: CheckpointStore) -> None:
        fill(store, 3, 4)
        (store.path(4) / "tensors" / "state").write_bytes(b"")
        with pytest.raises(CheckpointError, match="must have 5 bytes, but has 0"):
            find_checkpoint(store.path(4))
        (store.path(4) / MANIFEST).unlink()
        with pytest.raises(CheckpointError, match="holds no manifest"):
            find_checkpoint(store.path(4))


def test_the_store_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trainer.checkpoint.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_multiples_are_kept_for_good_and_damaged_ones_do_not_count(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    fill(store, *range(10, 80, 10))
    (store.path(70) / MANIFEST).write_text("{")
    store.delete_old(keep=2, keep_every=30)
    # 70 is damaged, so 60 and 50 are the newest two; 30 is kept for good, 60 is both.
    assert store.steps() == [30, 50, 60, 70]
    store.delete_old(keep=1)
    assert store.steps() == [60, 70]


def test_a_deletion_that_dies_leaves_nothing_with_a_visible_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    fill(store, 1, 2, 3)
    monkeypatch.setattr("trainer.checkpoint.store.shutil.rmtree", lambda path, ignore_errors: None)
    store.delete_old(keep=1)
    assert store.steps() == [3]
    monkeypatch.undo()
    store.delete_old(keep=1)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step_3"]
