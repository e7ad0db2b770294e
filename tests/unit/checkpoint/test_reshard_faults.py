"""Whatever fails in resharding, nothing is left that could pass for a checkpoint, and it is said why."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.checkpoint.checkpoint_fixtures import KINDS
from tests.unit.checkpoint.reshard_fixtures import (
    STEP,
    VOCABULARY,
    checkpoint_of,
    config_of,
    make_run,
    random_fragments,
    reshard,
    same,
    seal,
    tensors_of,
)
from trainer.checkpoint import container, rewrite
from trainer.checkpoint import fragments as fragment_files
from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.placement import Placement
from trainer.checkpoint.store import CheckpointStore
from trainer.config.plan import make_plan
from trainer.engine.face import Fragment
from trainer.errors import CheckpointError
from trainer.run_paths import CONFIG, TENSORS
from trainer.tensor_parallel.shard import ShardSpec

Damage = Callable[[Path, Path], object]
TENSOR_FILE = f"{TENSORS}/rank_00000.safetensors"


def _flip(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _remove(path: Path, other: Path) -> None:
    path.unlink()


def _swap(path: Path, other: Path) -> None:
    assert other.read_bytes() != path.read_bytes()
    shutil.copyfile(other, path)


@pytest.mark.parametrize("name", [TENSOR_FILE, CONFIG, MANIFEST])
@pytest.mark.parametrize("damage", [_flip, _cut, _remove, _swap], ids=["flipped", "cut", "missing", "swapped"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "of a run"])
def test_a_damaged_source_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage, named: bool
) -> None:
    checkpoint, other = checkpoint_of(source), make_run(tmp_path / "other", seed=12)
    damage(checkpoint / name, other / name)
    assert reshard(checkpoint if named else source, tmp_path / "target", "layout=tp2_pp2") == 4
    said = capsys.readouterr().err
    assert "error: " in said
    # Another step's manifest is right about itself, and wrong about the files.
    assert (CONFIG if (damage, name) == (_swap, MANIFEST) else name) in said
    assert "Traceback" not in said
    assert not (tmp_path / "target").exists()


def test_the_newest_whole_one_of_a_run_is_taken(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, damage in ((8, _flip), (9, _cut)):
        path = make_run(source, step=step) / TENSOR_FILE
        damage(path, path)
    assert reshard(source, tmp_path / "target", "layout=tp2") == 0
    assert CheckpointStore(tmp_path / "target").steps() == [STEP]
    said = capsys.readouterr().err
    assert said.count("warning: skipping a damaged checkpoint") == 2
    assert "step_8" in said
    assert "step_9" in said


def test_a_source_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reshard(tmp_path / "nowhere", tmp_path / "target", "layout=tp2") == 4
    assert "nowhere must be a run folder or a checkpoint, but does not exist" in capsys.readouterr().err


def _sealed(run_dir: Path, change: Callable[[Path], object]) -> None:
    """Change a checkpoint, and let its manifest say that this is how it was saved: a hash is no signature."""
    checkpoint = make_run(run_dir)
    change(checkpoint)
    seal(checkpoint, STEP, config_of())


def test_tensors_that_are_not_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = random_fragments(config_of())
    unknown = ShardSpec("stranger.weight", (3,))
    strangers = [Fragment(kind, unknown, 0, 1, 0, torch.zeros(3)) for kind in KINDS]
    few = [f for f in good if f.spec.name != "final_norm.weight"]
    one_moment = [f for f in good if f.kind != "exp_avg" or f.spec.name != "final_norm.weight"]
    rows = [replace(f, spec=replace(f.spec, padding=9)) if f.spec.padding else f for f in good]
    for number, (fragments, problem) in enumerate(
        [
            ([*good, *strangers], "parameters of the model"),
            (few, "parameters of the model of its config.yaml, but holds"),
            (one_moment, "must hold weight and exp_avg of the same tensors, but final_norm.weight differs"),
            (rows, "parameters of the model"),
        ]
    ):
        make_run(tmp_path / str(number), fragments=fragments)
        assert reshard(tmp_path / str(number), tmp_path / "target", "layout=tp2") == 4
        assert problem in capsys.readouterr().err
        assert not (tmp_path / "target").exists()


def test_names_and_shapes_that_are_of_no_tensor() -> None:
    placement = Placement(make_plan(config_of(), VOCABULARY))
    with pytest.raises(CheckpointError, match=r"stranger\.weight must be a tensor of the model"):
        placement.spec(ShardSpec("stranger.weight", (3,)))
    with pytest.raises(CheckpointError, match=r"must have shape \(61, 16\) in the model .* but has \(60, 16\)"):
        placement.spec(ShardSpec("embedding.weight", (65, 16), 0, (65,), 5))


def test_a_config_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _sealed(tmp_path / "source", lambda found: (found / CONFIG).write_text("model: [1"))
    assert reshard(tmp_path / "source", tmp_path / "target", "layout=tp2") == 4
    assert "must be a config that this version can read, but" in capsys.readouterr().err
    _sealed(tmp_path / "other", lambda found: (found / CONFIG).unlink())
    assert reshard(tmp_path / "other", tmp_path / "target", "layout=tp2") == 4
    assert "must list config.yaml, but does not" in capsys.readouterr().err


def test_what_was_written_wrong_is_not_published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rewrite, "cut_run", lambda *given: fragment_files.cut_run(*given) + 1)
    assert reshard(source, tmp_path / "target", "layout=tp2") == 4
    assert "as it was, but what was read back differs" in capsys.readouterr().err
    monkeypatch.setattr(rewrite, "cut_run", fragment_files.cut_run)
    finish = container.ContainerWriter.finish

    def lossy(self: container.ContainerWriter) -> object:
        facts = finish(self)
        _flip(self._path, self._path)
        return facts

    monkeypatch.setattr(container.ContainerWriter, "finish", lossy)
    assert reshard(source, tmp_path / "target", "layout=tp2") == 4
    assert "must be as it was saved, but its content has changed" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


class Disk:
    """What is done to the disk, counted; the number-th fails."""

    CALLS = ("write", "fsync", "mkdir", "rename", "replace")

    def __init__(self, number: int, code: int) -> None:
        self.number, self.code = number, code
        self.done: Counter[str] = Counter()

    def wrap(self, name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def wrapped(*given: object, **more: object) -> object:
            # What makes a folder that is there need not be able to.
            if name == "mkdir" and os.path.isdir(str(given[0])):
                return real(*given, **more)
            self.done[name] += 1
            if self.done.total() == self.number:
                raise OSError(self.code, os.strerror(self.code))
            return real(*given, **more)

        return wrapped


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, number: int, code: int = errno.ENOSPC) -> Iterator[Counter[str]]:
    disk = Disk(number, code)
    with monkeypatch.context() as patch:
        for name in Disk.CALLS:
            patch.setattr(os, name, disk.wrap(name))
        yield disk.done


def test_a_full_disk_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(monkeypatch, 0) as done:
        assert reshard(source, tmp_path / "whole", "layout=tp2") == 0
    assert set(done) == set(Disk.CALLS)
    # All of the first and last ones, and some of the many writes of tensors.
    chance, total = random.Random(4), done.total()
    assert total > 40
    for number in sorted({*range(1, 6), *range(total - 12, total + 1), *chance.sample(range(6, total - 12), 4)}):
        capsys.readouterr()
        with failing(monkeypatch, number) as seen:
            code = reshard(source, tmp_path / "deep" / "target", "layout=tp2")
        said = capsys.readouterr().err
        assert seen.total() >= number
        assert code == 8, f"number {number} of {total}: {said}"
        assert "the disk is full" in said
        assert "Traceback" not in said
        assert not (tmp_path / "deep").exists(), f"number {number} of {total}"
    assert same(tensors_of(checkpoint_of(source)), tensors_of(checkpoint_of(tmp_path / "whole")))


def test_what_was_there_stays_when_the_disk_is_full(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    (target / "checkpoints").mkdir(parents=True)
    (target / "notes.txt").write_text("mine")
    with failing(monkeypatch, 9):
        assert reshard(source, target, "layout=tp2") == 8
    assert "change DST" in capsys.readouterr().err
    assert sorted(p.name for p in target.rglob("*")) == ["checkpoints", "notes.txt"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(monkeypatch, 3, code):
        assert reshard(source, tmp_path / "target", "layout=tp2") == 8
    assert "DST" in capsys.readouterr().err


def test_too_little_room_is_said_before_it_is_filled(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert reshard(source, tmp_path / "target", "layout=tp2") == 8
    assert "must have room for 0.00 GiB, but has 0.00 GiB" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_what_a_killed_one_left_is_no_obstacle(source: Path, tmp_path: Path) -> None:
    partial = CheckpointStore(tmp_path / "target").temporary_path(STEP)
    (partial / TENSORS).mkdir(parents=True)
    (partial / TENSORS / "rank_00000.safetensors").write_text("half")
    assert reshard(source, tmp_path / "target", "layout=tp2") == 0
    assert not partial.exists()
