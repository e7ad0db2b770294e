from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.distributed as dist

from trainer.checkpoint.hook import CheckpointHook, resume
from trainer.checkpoint.manifest import MANIFEST, read_manifest
from trainer.checkpoint.store import LATEST, CheckpointStore
from trainer.checkpoint.weights import read_weights
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import CheckpointConfig, LayoutConfig, ModelConfig, TridentConfig
from trainer.data.batches import MicroBatch
from trainer.engine.face import StepResult
from trainer.errors import CheckpointError, StorageError
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.state import TrainState
from trainer.tensor_parallel.shard import ShardSpec
from trainer.topology.groups import DistGroup, single_process_groups

FULL = torch.arange(8.0)
SPEC = ShardSpec("w", (8,), 0, (8,))


class FakeEngine:
    """Saves one file, and leaves a script beside it as DeepSpeed does. `fails` is raised by the next save or load."""

    def __init__(self) -> None:
        self.fails: Exception | None = None
        self.saves = 0
        self.loaded: Path | None = None

    def save(self, folder: Path) -> None:
        self.saves += 1
        (folder.parent / "zero_to_fp32.py").write_text("script")
        folder.mkdir(exist_ok=True)
        (folder / "rank0.pt").write_bytes(b"state" * self.saves)
        if self.fails is not None:
            raise self.fails

    def load(self, folder: Path) -> None:
        if self.fails is not None:
            raise self.fails
        self.loaded = folder

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        return {"w": FULL + self.saves}

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        return {"w": SPEC}

    def train_step(self, micro_batches: Sequence[MicroBatch], step: int, learning_rate: float) -> StepResult:
        raise AssertionError

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        raise AssertionError

    def loss_scale(self) -> float | None:
        raise AssertionError

    def skipped_steps(self) -> int:
        raise AssertionError

    def take_busy_seconds(self) -> float:
        raise AssertionError


def plan_of(every: int = 2, keep: int = 9, save_final: bool = True, tp: int = 1, vocab_size: int = 100) -> RunPlan:
    config = TridentConfig(
        model=ModelConfig(seq_length=16),
        layout=LayoutConfig(tensor_parallel_size=tp),
        checkpoint=CheckpointConfig(every=every, keep=keep, save_final=save_final),
    )
    return make_plan(config, vocab_size)


@pytest.fixture
def control() -> Iterator[DistGroup]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    handle = dist.group.WORLD
    assert handle is not None
    yield DistGroup(handle, 0, 1, (0,))
    dist.destroy_process_group()


class Run:
    """A hook with its collaborators, and the loop's part in it."""

    def __init__(self, run_dir: Path, control: DistGroup, plan: RunPlan | None = None, step: int = 0) -> None:
        self.store = CheckpointStore(run_dir)
        self.engine = FakeEngine()
        self.state = TrainState(step)
        self.hook = CheckpointHook(
            self.store, self.engine, plan or plan_of(), self.state, single_process_groups(), control
        )

    def steps(self, last: int) -> None:
        self.hook.on_start(self.state.step + 1)
        for step in range(self.state.step + 1, last + 1):
            self.state.step = step
            self.state.tokens_seen += 10
            self.hook.on_step(step)
            self.hook.on_report(cast(StepReport, None))

    def end(self, status: str) -> None:
        self.hook.on_end(RunEnd(status, self.state.step, 1.0))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.store.folder.iterdir())


@pytest.fixture
def run(tmp_path: Path, control: DistGroup) -> Run:
    return Run(tmp_path, control)


def test_a_checkpoint_is_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.steps(2)
    path = run.store.path(2)
    files = sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())
    assert files == ["engine/rank0.pt", MANIFEST, "weights/stage0_tp0.safetensors"]
    manifest = read_manifest(path)
    assert manifest.files.keys() == {"engine/rank0.pt", "weights/stage0_tp0.safetensors"}
    assert (manifest.step, manifest.vocab_size) == (2, 100)
    assert manifest.train_state == {"step": 2, "tokens_seen": 20, "sample_ledger": ""}
    assert torch.equal(read_weights(path / "weights")["w"], FULL + 1)
    assert (run.store.folder / LATEST).read_text() == "step_2\n"
    assert run.names() == [LATEST, "step_2"]
    assert f"saved {path}" in capsys.readouterr().out


def test_saves_come_every_so_many_steps_and_at_the_end(run: Run) -> None:
    run.steps(5)
    assert run.store.steps() == [2, 4]
    run.end("finished")
    assert run.store.steps() == [2, 4, 5]
    assert run.engine.saves == 3


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
def test_which_ends_are_saved(
    tmp_path: Path, control: DistGroup, status: str, save_final: bool, saved: list[int]
) -> None:
    run = Run(tmp_path, control, plan_of(every=0, save_final=save_final))
    run.steps(3)
    run.end(status)
    assert run.store.steps() == saved


def test_a_resumed_run_that_trains_nothing_saves_nothing(tmp_path: Path, control: DistGroup) -> None:
    run = Run(tmp_path, control, step=8)
    run.end("stopped")
    assert run.engine.saves == 0


def test_only_so_many_are_kept(tmp_path: Path, control: DistGroup) -> None:
    run = Run(tmp_path, control, plan_of(every=1, keep=2))
    run.steps(12)
    assert run.names() == [LATEST, "step_11", "step_12"]


def test_the_same_step_again_replaces_it(run: Run) -> None:
    run.steps(2)
    run.hook.save()
    assert run.store.steps() == [2]
    assert torch.equal(read_weights(run.store.path(2) / "weights")["w"], FULL + 2)
    assert run.store.newest_valid() is not None


def test_a_run_that_went_back_keeps_what_it_trains_anew(
    tmp_path: Path, control: DistGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Run(tmp_path, control, plan_of(every=2, keep=2))
    first.steps(100)
    assert first.store.steps() == [98, 100]
    capsys.readouterr()
    again = Run(tmp_path, control, plan_of(every=2, keep=2), step=50)
    again.steps(52)
    assert again.store.steps() == [52]
    assert "deleted the checkpoints of steps 98, 100: this run went back" in capsys.readouterr().out
    again.steps(54)
    assert again.store.steps() == [52, 54]
    assert "deleted" not in capsys.readouterr().out


def test_what_an_earlier_crash_left_is_not_taken_in(run: Run) -> None:
    left = run.store.temporary_path(2)
    left.mkdir(parents=True)
    (left / "old").write_text("x")
    run.steps(2)
    assert "old" not in read_manifest(run.store.path(2)).files
    assert run.names() == [LATEST, "step_2"]


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")
# What torch 2.10 and later say when a write is cut short.
CUT_SHORT = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FULL_DISK, StorageError, "the disk is full"),
        (CUT_SHORT, StorageError, "a write was cut short"),
        (OSError(errno.EROFS, "Read-only file system"), StorageError, "writing is not allowed"),
        (RuntimeError("something else"), RuntimeError, "something else"),
    ],
)
def test_a_failed_write_leaves_the_earlier_checkpoint_and_nothing_half_written(
    run: Run, error: Exception, kind: type[Exception], words: str
) -> None:
    run.steps(2)
    before = read_manifest(run.store.path(2))
    run.engine.fails = error
    with pytest.raises(kind, match=words):
        run.steps(4)
    assert run.names() == [LATEST, "step_2"]
    found = run.store.newest_valid()
    assert found == (run.store.path(2), before)
    # And the run could go on, if the disk came back.
    run.engine.fails = None
    run.hook.save()
    assert run.store.steps() == [2, 4]


def test_torch_really_says_so_when_a_write_is_cut_short(run: Run) -> None:
    class Cut(FakeEngine):
        def save(self, folder: Path) -> None:
            torch.save({"x": torch.zeros(100_000)}, "/dev/full")

    run.hook._engine = Cut()
    with pytest.raises(StorageError, match="a write was cut short") as caught:
        run.hook.save()
    assert caught.value.exit_code == 8


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


def test_nothing_has_the_final_name_before_it_is_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], bool]] = []
    rename = Path.rename

    def spy(self: Path, target: Path) -> Path:
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
        lost = [path for path in self.rglob("*") if path.stat().st_ino not in synced]
        assert not lost
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


def test_resume_loads_the_engine_and_returns_the_state(run: Run, control: DistGroup) -> None:
    run.steps(4)
    found = run.store.newest_valid()
    assert found is not None
    engine = FakeEngine()
    assert resume(found, engine, plan_of(), control) == TrainState(step=4, tokens_seen=40)
    assert engine.loaded == run.store.path(4) / "engine"


def test_resume_from_nothing_is_a_fresh_state(control: DistGroup) -> None:
    engine = FakeEngine()
    assert resume(None, engine, plan_of(), control) == TrainState()
    assert engine.loaded is None


def test_resume_in_another_layout_is_refused_before_anything_is_loaded(run: Run, control: DistGroup) -> None:
    run.steps(2)
    found = run.store.newest_valid()
    engine = FakeEngine()
    with pytest.raises(CheckpointError, match=r"layout\.tensor_parallel_size=1 \(not 2\)"):
        resume(found, engine, plan_of(tp=2), control)
    assert engine.loaded is None
    assert found is not None
    broken = (found[0], replace(found[1], train_state={"step": "x"}))
    with pytest.raises(CheckpointError, match="step must be a whole number"):
        resume(broken, engine, plan_of(), control)
