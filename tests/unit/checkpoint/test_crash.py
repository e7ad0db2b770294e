"""Whenever the machine stops during a save, a whole checkpoint is found: the old one or the new one, never a part.

Every prefix of what a save does to the disk is turned into the folders that a crash there may leave (crash_fixtures),
and each is resumed from.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.unit.checkpoint.checkpoint_fixtures import FULL, Run, config_of, plan_of, tensors_of
from tests.unit.checkpoint.crash_fixtures import Disk, Recording, Tree, plant, record
from trainer.checkpoint.manifest import check_sizes
from trainer.checkpoint.resume import checkpoint_to_resume
from trainer.checkpoint.store import CheckpointStore
from trainer.errors import CheckpointError
from trainer.files import sync_folder
from trainer.topology.groups import Group

Allowed = Collection[tuple[int, int] | None]
"""(step, number of the save that its tensors are of); None: there is no checkpoint, and training begins."""


@dataclass(frozen=True)
class Scenario:
    """What is there before the save that is watched, and what may be found in its course."""

    before: Callable[[Path, Group], Run]
    allowed: Allowed
    new: tuple[int, int]


def _fresh(run_dir: Path, control: Group, keep: int = 9, step: int = 0) -> Run:
    return Run(run_dir, control, plan_of(every=1, keep=keep), step=step)


def _first(run_dir: Path, control: Group) -> Run:
    return _fresh(run_dir, control)


def _second(run_dir: Path, control: Group) -> Run:
    run = _fresh(run_dir, control)
    run.steps(1)
    return run


def _one_is_kept(run_dir: Path, control: Group) -> Run:
    run = _fresh(run_dir, control, keep=1)
    run.steps(1)
    return run


def _same_step(run_dir: Path, control: Group) -> Run:
    run = _fresh(run_dir, control)
    run.steps(2)
    run.state.step = 1
    return run


def _went_back(run_dir: Path, control: Group) -> Run:
    run = _fresh(run_dir, control)
    run.steps(3)
    shutil.rmtree(run.store.path(2))
    run.state.step = 1
    return run


SCENARIOS = {
    "first": Scenario(_first, [None, (1, 1)], (1, 1)),
    "second": Scenario(_second, [(1, 1), (2, 2)], (2, 2)),
    "one is kept": Scenario(_one_is_kept, [(1, 1), (2, 2)], (2, 2)),
    # Between the two renamings only the one before is there.
    "same step": Scenario(_same_step, [(2, 2), (2, 3), (1, 1)], (2, 3)),
    "went back": Scenario(_went_back, [(3, 3), (2, 4)], (2, 4)),
}


class Unsafe(Exception):
    """A crash leaves something that must not be."""


def _found(run_dir: Path, control: Group) -> tuple[int, int] | None:
    try:
        found = checkpoint_to_resume(config_of(), CheckpointStore(run_dir), control)
        if found is None:
            return None
        saved = tensors_of(found.path, found.manifest)
    except CheckpointError as error:
        raise Unsafe(f"nothing can be resumed: {error}") from error
    number = int(saved["weight"][0])
    for kind, factor in (("weight", 1), ("exp_avg", 10), ("exp_avg_sq", 100)):
        if not torch.equal(saved[kind], factor * (FULL + number)):
            raise Unsafe(f"{kind} of step {found[1].step} is not what was saved")
    return found[1].step, number


class Watched:
    """A recorded save, and what was found after each crash in it."""

    def __init__(self, scenario: Scenario, control: Group, tmp_path: Path) -> None:
        self.scenario = scenario
        self.control = control
        self.scratch = tmp_path / "crashed"
        run_dir = tmp_path / "run"
        run_dir.mkdir(parents=True)
        run = scenario.before(run_dir, control)
        with record(run_dir) as self.recording:
            run.steps(run.state.step + 1)
        self.seen: dict[tuple[tuple[str, bytes | None], ...], tuple[int, int] | None] = {}

    def found_in(self, tree: Tree) -> tuple[int, int] | None:
        key = tuple(sorted(tree.items()))
        if key not in self.seen:
            plant(self.scratch, tree)
            try:
                self.seen[key] = _found(self.scratch, self.control)
            finally:
                shutil.rmtree(self.scratch)
        return self.seen[key]

    def check(self) -> None:
        """Crash at every moment, in every way."""
        operations = self.recording.operations
        for moment in range(len(operations) + 1):
            for tree in Disk(self.recording, moment).crashes():
                found = self.found_in(tree)
                if found not in self.scenario.allowed:
                    raise Unsafe(f"{found} after {operations[:moment][-1:]}")

    def check_durable(self) -> None:
        """Crash after the save has said that it is done: the new one is there, whatever was not synced."""
        for tree in Disk(self.recording, len(self.recording.operations)).crashes():
            found = self.found_in(tree)
            # The old one that was to be deleted may be back: it is whole, and newer by its number.
            if found != self.scenario.new and (found is None or found[0] <= self.scenario.new[0]):
                raise Unsafe(f"{found} is found after the save of {self.scenario.new}")

    def check_lies(self) -> None:
        """Crash with a disk that lost one file that it had called safe."""
        for tree in Disk(self.recording, len(self.recording.operations)).lies():
            found = self.found_in(tree)
            if found not in self.scenario.allowed:
                raise Unsafe(f"{found} where a file is zeros")


@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_crash_the_old_or_the_new_one_is_found(name: str, control: Group, tmp_path: Path) -> None:
    watched = Watched(SCENARIOS[name], control, tmp_path)
    watched.check()
    watched.check_durable()
    outcomes = set(watched.seen.values())
    assert {SCENARIOS[name].new} < outcomes, "a crash early and one late leave different things"
    assert len(watched.recording.operations) >= 20
    assert len(watched.seen) > 20


def test_a_disk_that_lies_about_a_file_costs_one_checkpoint(control: Group, tmp_path: Path) -> None:
    watched = Watched(SCENARIOS["second"], control, tmp_path)
    watched.check_lies()
    assert set(watched.seen.values()) == {(1, 1), (2, 2)}


def _without_fsync_of_tensors() -> AbstractContextManager[object]:
    lazy = SimpleNamespace(fsync=lambda handle: None, strerror=os.strerror)
    return mock.patch("trainer.checkpoint.fragments.os", lazy)


def _without_fsync_of(folder: str) -> Callable[[], AbstractContextManager[object]]:
    def some(found: Path) -> None:
        if found.name != folder:
            sync_folder(found)

    return lambda: mock.patch("trainer.checkpoint.save.sync_folder", some)


def _without_fsync_of_the_manifest() -> AbstractContextManager[object]:
    lazy = SimpleNamespace(**{**vars(os), "fsync": lambda handle: None})
    return mock.patch("trainer.files.os", lazy)


@contextmanager
def _in_place() -> Iterator[None]:
    def publish(self: CheckpointStore, step: int) -> None:
        sync_folder(self.folder)

    with (
        mock.patch.object(CheckpointStore, "temporary_path", CheckpointStore.path),
        mock.patch.object(CheckpointStore, "publish", publish),
    ):
        yield


@contextmanager
def _old_ones_go_first() -> Iterator[None]:
    """Delete before the new one has its name."""
    publish = CheckpointStore.publish

    def deleting(self: CheckpointStore, step: int) -> None:
        for other in self.steps():
            shutil.rmtree(self.path(other))
        publish(self, step)

    with mock.patch.object(CheckpointStore, "publish", deleting):
        yield


def _without_checksum() -> AbstractContextManager[object]:
    def sizes(checkpoint: Path, manifest: object, part: int = 0, parts: int = 1) -> None:
        check_sizes(checkpoint, manifest)  # type: ignore[arg-type]

    return mock.patch("trainer.checkpoint.resume.check_content", sizes)


@pytest.mark.parametrize(
    ("mutation", "name", "check"),
    [
        (_without_fsync_of_tensors, "second", Watched.check_durable),
        (_without_fsync_of_tensors, "one is kept", Watched.check),
        (_without_fsync_of("tensors"), "one is kept", Watched.check),
        (_without_fsync_of("run"), "first", Watched.check_durable),
        (_without_fsync_of_the_manifest, "one is kept", Watched.check),
        (_in_place, "first", Watched.check),
        (_old_ones_go_first, "second", Watched.check),
        (_without_checksum, "second", Watched.check_lies),
    ],
)
def test_a_save_that_forgets_something_is_noticed(
    mutation: Callable[[], AbstractContextManager[object]],
    name: str,
    check: Callable[[Watched], None],
    control: Group,
    tmp_path: Path,
) -> None:
    for guard, folder in ((nullcontext(), "right"), (mutation(), "wrong")):
        with guard:
            watched = Watched(SCENARIOS[name], control, tmp_path / folder)
            if folder == "right":
                check(watched)
            else:
                with pytest.raises(Unsafe):
                    check(watched)


def _recorded(tmp_path: Path, *steps: Callable[[Path], object]) -> Recording:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    with record(root) as recording:
        for step in steps:
            step(root)
    return recording


def _left(recording: Recording) -> list[Tree]:
    found: list[Tree] = []
    for tree in Disk(recording, len(recording.operations)).crashes():
        if tree not in found:
            found.append(tree)
    return found


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def test_the_model_knows_what_is_safe(tmp_path: Path) -> None:
    def write(root: Path) -> None:
        (root / "new").write_bytes(b"abcd")

    recording = _recorded(tmp_path, write)
    assert recording.operations == [("write", "new")]
    old: Tree = {"old": b"old"}
    contents = (b"", b"ab", bytes(4), b"abcd")
    assert _left(recording) == [old, *({**old, "new": content} for content in contents)]


@pytest.mark.parametrize("is_folder_synced", [False, True])
def test_the_model_knows_renamings(tmp_path: Path, is_folder_synced: bool) -> None:
    def replace(root: Path) -> None:
        (root / "new").write_bytes(b"abcd")
        _sync(root / "new")
        (root / "new").replace(root / "old")

    recording = _recorded(tmp_path, replace, _sync if is_folder_synced else lambda root: None)
    after: list[Tree] = [{"old": b"abcd"}]
    assert _left(recording) == (after if is_folder_synced else [{"old": b"old"}, *after])
    assert recording.operations[:3] == [("write", "new"), ("fsync", "new"), ("rename", "new", "old")]


def test_the_model_knows_folders_and_deletions(tmp_path: Path) -> None:
    def make(root: Path) -> None:
        (root / "a").mkdir()
        (root / "a" / "b").write_bytes(b"x")
        _sync(root / "a" / "b")
        _sync(root)

    recording = _recorded(tmp_path, make)
    assert _left(recording) == [{"old": b"old", "a": None}, {"old": b"old", "a": None, "a/b": b"x"}]
    with record(tmp_path / "root") as deleting:
        shutil.rmtree(tmp_path / "root" / "a")
    assert deleting.operations == [("unlink", "a/b"), ("rmdir", "a")]
    assert Disk(deleting, 2)._tree([], lambda file: b"") == {"old": b"old", "a": None, "a/b": b"x"}
