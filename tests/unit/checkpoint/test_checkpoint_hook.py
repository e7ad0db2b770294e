from __future__ import annotations

import errno
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.checkpoint_fixtures import FULL, KINDS, TENSOR_FILE, Run, config_of, plan_of
from trainer.checkpoint.manifest import MANIFEST, check_content, file_facts, read_manifest
from trainer.config.compose import from_yaml
from trainer.config.schema import OffloadKind, ZeroConfig
from trainer.errors import StorageError
from trainer.run_events import read_events
from trainer.run_paths import CONFIG, EVENTS, LATEST
from trainer.topology.groups import Group


def test_a_checkpoint_is_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.steps(2)
    path = run.store.path(2)
    files = sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())
    assert files == [CONFIG, MANIFEST, TENSOR_FILE]
    manifest = read_manifest(path)
    assert manifest.files == {name: file_facts(path / name) for name in (CONFIG, TENSOR_FILE)}
    check_content(path, manifest)
    assert (manifest.step, manifest.vocab_size) == (2, 100)
    assert manifest.train_state == run.state.to_dict()
    assert (manifest.train_state["step"], manifest.train_state["position"]) == (2, 24)
    assert manifest.scalars == {"optimizer_step": 0.0, "skipped_steps": 0.0}
    assert manifest.probe_loss == run.engine.probe
    assert manifest.layout["data_parallel_size"] == 1
    assert {"trident-trainer", "python", "torch", "deepspeed"} <= manifest.versions.keys()
    assert from_yaml((path / CONFIG).read_text()) == config_of(every=2, keep=9, asynchronous=False)
    saved = run.saved(2)
    assert all(torch.equal(saved[kind], run.engine.values(kind)) for kind in KINDS)
    assert (run.store.folder / LATEST).read_text() == "step_2\n"
    assert run.names() == [LATEST, "step_2"]
    assert f"saved {path}" in capsys.readouterr().out


def test_saves_come_every_so_many_steps_and_at_the_end(run: Run) -> None:
    run.steps(5)
    assert run.store.steps() == [2, 4]
    run.end("finished")
    assert run.store.steps() == [2, 4, 5]
    assert run.engine.saves == 3


def test_each_save_is_an_event(run: Run) -> None:
    run.steps(5)
    run.end("finished")
    events = read_events(run.store.run_dir)
    assert [(event.kind, event.step) for event in events] == [("save", 2), ("save", 4), ("save", 5)]
    assert all(event.details["write_s"] > 0 for event in events)  # type: ignore[operator]


def test_a_save_whose_event_a_kill_kept_from_being_written_is_told_by_the_next_start(
    run: Run, control: Group, tmp_path: Path
) -> None:
    run.steps(4)
    (tmp_path / EVENTS).write_text("")
    os.utime(run.store.path(2) / MANIFEST, (1e9, 1e9))
    again = Run(tmp_path, control, step=4)
    again.steps(6)
    events = read_events(tmp_path)
    assert [(event.kind, event.step) for event in events] == [("save", 2), ("save", 4), ("save", 6)]
    assert events[0].time == datetime.fromtimestamp(1e9, UTC)


def test_while_batches_are_skipped_nothing_is_saved_and_then_it_is_made_up_for(run: Run) -> None:
    run.steps(2)
    run.state.skipped_in_row = 1
    run.steps(4)
    run.steps(7)
    assert run.store.steps() == [2]
    run.state.skipped_in_row = 0
    run.steps(9)
    assert run.store.steps() == [2, 8]


def test_the_last_step_is_saved_once(run: Run) -> None:
    run.steps(4)
    run.end("finished")
    assert run.engine.saves == 2


@pytest.mark.parametrize(
    ("status", "save_final", "saved"),
    [
        ("finished", True, [3]),
        ("finished", False, []),
        ("stopped", True, [3]),
        ("stopped", False, [3]),
        ("failed", True, []),
    ],
)
def test_which_ends_are_saved(tmp_path: Path, control: Group, status: str, save_final: bool, saved: list[int]) -> None:
    run = Run(tmp_path, control, plan_of(every=0, save_final=save_final))
    run.steps(3)
    run.end(status)
    assert run.store.steps() == saved


def test_what_is_on_nvme_is_not_saved_when_asked_to_stop(
    tmp_path: Path, control: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(every=0, save_final=False)
    zero = ZeroConfig(stage=3, offload=OffloadKind.nvme, nvme_path="/nvme")
    run = Run(tmp_path, control, replace(plan, config=replace(plan.config, zero=zero)))
    run.steps(3)
    run.end("stopped")
    assert run.engine.saves == 0
    assert "not saved: the state on NVMe" in capsys.readouterr().err


def test_a_resumed_run_that_trains_nothing_saves_nothing(tmp_path: Path, control: Group) -> None:
    run = Run(tmp_path, control, step=8)
    run.end("stopped")
    assert run.engine.saves == 0


def test_only_so_many_are_kept(tmp_path: Path, control: Group) -> None:
    run = Run(tmp_path, control, plan_of(every=1, keep=2))
    run.steps(12)
    assert run.names() == [LATEST, "step_11", "step_12"]


def test_the_same_step_again_replaces_it(run: Run) -> None:
    run.steps(2)
    run.hook.save()
    assert run.names() == [LATEST, "step_2"]
    assert torch.equal(run.saved(2)["weight"], FULL + 2)
    assert run.store.newest_valid() is not None


def test_what_is_later_than_the_one_resumed_from_is_kept_beside_the_new_ones(
    tmp_path: Path, control: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Run(tmp_path, control, plan_of(every=2, keep=2))
    first.steps(20)
    capsys.readouterr()
    # As if both had been found damaged.
    again = Run(tmp_path, control, plan_of(every=2, keep=2), step=10)
    again.steps(12)
    assert again.store.steps() == [12]
    told = capsys.readouterr().out
    for step in (18, 20):
        aside = again.store.folder / f"step_{step}.damaged"
        assert f"{aside} was damaged and is of no more use to this run" in told
        assert (aside / MANIFEST).is_file()
    again.steps(14)
    assert again.store.steps() == [12, 14]
    assert "damaged" not in capsys.readouterr().out


def test_what_an_earlier_crash_left_is_not_taken_in(run: Run) -> None:
    left = run.store.temporary_path(2)
    (left / "tensors").mkdir(parents=True)
    (left / "tensors" / "rank_00007.safetensors").write_text("x")
    run.steps(2)
    assert read_manifest(run.store.path(2)).files.keys() == {CONFIG, TENSOR_FILE}
    assert not (run.store.path(2) / "tensors" / "rank_00007.safetensors").exists()
    assert run.names() == [LATEST, "step_2"]


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FULL_DISK, StorageError, "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StorageError, "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), StorageError, "writing is not allowed"),
        (OSError(errno.EIO, "Input/output error"), StorageError, "I/O error"),
        (RuntimeError("something else"), RuntimeError, "something else"),
    ],
)
def test_a_failed_write_leaves_the_earlier_checkpoint_and_nothing_half_written(
    run: Run, error: Exception, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.steps(2)
    before = read_manifest(run.store.path(2))

    def fail(path: Path, _: object) -> bool:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr("trainer.checkpoint.save.write_fragments", fail)
    with pytest.raises(kind, match=words):
        run.steps(4)
    assert run.names() == [LATEST, "step_2"]
    assert run.store.newest_valid() == (run.store.path(2), before)
    # And the run could go on, if the disk came back.
    monkeypatch.undo()
    run.hook.save()
    assert run.store.steps() == [2, 4]


@pytest.mark.parametrize("place", ["mkdir", "rename"])
def test_a_disk_that_fails_at_the_beginning_or_at_the_very_end(
    run: Run, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.steps(2)

    def full(self: Path, *_: object, **__: object) -> None:
        raise FULL_DISK

    monkeypatch.setattr(Path, place, full)
    with pytest.raises(StorageError, match=r"step_4.* must be writable, but the disk is full"):
        run.steps(4)
    monkeypatch.undo()
    assert run.names() == [LATEST, "step_2"]
    assert run.store.newest_valid() is not None


@pytest.mark.parametrize("call", range(1, 9))
def test_a_disk_that_fails_at_any_fsync(run: Run, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run.steps(2)
    calls, fsync = [0], os.fsync

    def failing(handle: int) -> None:
        calls[0] += 1
        if calls[0] == call:
            raise FULL_DISK
        fsync(handle)

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(StorageError, match="the disk is full"):
        run.steps(4)
    monkeypatch.undo()
    # Only from the moment that it has its name on it stays, whatever fails after.
    found = run.store.newest_valid()
    assert found is not None
    assert found[1].step == (4 if call > 7 else 2) or call == 7
    assert not [name for name in run.names() if name.startswith(".step")]
    check_content(*found)


def test_nothing_has_the_final_name_before_it_is_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bool]] = []
    rename = Path.rename

    def spy(self: Path, target: Path) -> Path:
        check_content(self, read_manifest(self))
        seen.append((run.names(), (self / MANIFEST).is_file()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    run.steps(2)
    assert seen == [([".step_2.partial"], True)]


def test_content_is_durable_before_the_name_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    fsync, rename, replace_file = os.fsync, Path.rename, Path.replace

    def spy_fsync(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def spy_rename(self: Path, target: Path) -> Path:
        lost = [path for path in (self, *self.rglob("*")) if path.stat().st_ino not in synced]
        assert not lost
        assert len(list(self.rglob("*"))) == 4
        return rename(self, target)

    def spy_replace(self: Path, target: Path) -> Path:
        # The rename is durable before `latest` says so.
        assert target.name != LATEST or run.store.folder.stat().st_ino in synced
        return replace_file(self, target)

    monkeypatch.setattr("os.fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    monkeypatch.setattr(Path, "rename", spy_rename)
    run.steps(2)
    assert (run.store.folder / LATEST).is_file()
