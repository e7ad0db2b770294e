"""Every damage to a real checkpoint of two ranks is noticed, and the run goes on from the one before.

TRIDENT_CORRUPTIONS=1000 tries that many.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.dist.resume_fixtures import Run, Trainer
from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case
from tests.unit.checkpoint.checkpoint_fixtures import config_of
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import (
    MANIFEST,
    FileFacts,
    Manifest,
    check_content,
    check_sizes,
    file_facts,
    read_manifest,
)
from trainer.checkpoint.resume import checkpoint_to_resume
from trainer.checkpoint.store import CheckpointStore
from trainer.config.compose import from_yaml
from trainer.errors import CheckpointError, TridentError
from trainer.run_paths import CONFIG
from trainer.topology.groups import Group

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

COUNT = int(os.environ.get("TRIDENT_CORRUPTIONS", "80"))
TENSORS = ("tensors/rank_00000.safetensors", "tensors/rank_00001.safetensors")
FILES = (*TENSORS, CONFIG, MANIFEST)
OLD, NEW = 1, 2
Damage = Callable[[Path, Path, random.Random], object]


def _truncate(path: Path, other: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _flip(path: Path, other: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _delete(path: Path, other: Path, chance: random.Random) -> None:
    path.unlink()


def _swap(path: Path, other: Path, chance: random.Random) -> None:
    shutil.copyfile(other, path)


def _extra(path: Path, other: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content.insert(chance.randrange(len(content) + 1), chance.randrange(256))
    path.write_bytes(content)


def _zeros(path: Path, other: Path, chance: random.Random) -> None:
    """A block that never reached the disk."""
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    length = min(512, len(content) - start)
    content[start : start + length] = bytes(length) if any(content[start : start + length]) else b"\1" * length
    path.write_bytes(content)


DAMAGES: tuple[Damage, ...] = (_truncate, _flip, _delete, _swap, _extra, _zeros)


def _two_steps(rank: int, world_size: int, run_dir: Path) -> None:
    trainer = Trainer(Run(Case(dp=2)), rank, world_size, run_dir)
    for step in (OLD, NEW):
        trainer.train(step)
        # As after a start with other settings: otherwise the two configs are the same file.
        train = replace(trainer.plan.config.train, steps=100 + step)
        trainer.plan = replace(trainer.plan, config=replace(trainer.plan.config, train=train))
        trainer.save()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> CheckpointStore:
    run_dir = tmp_path_factory.mktemp("run")
    run_distributed(_two_steps, 2, run_dir, timeout_s=120)
    return CheckpointStore(run_dir)


def _notices(checkpoint: Path) -> bool:
    try:
        check_content(checkpoint, read_manifest(checkpoint))
    except CheckpointError:
        return True
    return False


def _undamaged(store: CheckpointStore) -> dict[str, bytes]:
    content = {name: (store.path(NEW) / name).read_bytes() for name in FILES}
    assert len(list(store.path(NEW).rglob("*.*"))) == len(FILES)
    assert all(content[name] != (store.path(OLD) / name).read_bytes() for name in FILES)
    return content


def _each_damage(store: CheckpointStore, look: Callable[[str], object]) -> int:
    """Damage each file of the newer checkpoint in each way, look, and put it right again; return how often."""
    good = _undamaged(store)
    chance = random.Random(20)
    done = 0
    while done < COUNT:
        for name in FILES:
            for damage in DAMAGES:
                path = store.path(NEW) / name
                damage(path, store.path(OLD) / name, chance)
                look(f"{damage.__name__} {name} number {done}")
                path.write_bytes(good[name])
                done += 1
    return done


def test_every_damage_is_noticed_and_the_older_one_is_taken(
    saved: CheckpointStore, control: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(what: str) -> None:
        assert _notices(saved.path(NEW)), what
        found = checkpoint_to_resume(config_of(), saved, control)
        assert found is not None, what
        assert found[1].step == OLD, what

    done = _each_damage(saved, look)
    assert done >= COUNT
    assert capsys.readouterr().err.count("warning: skipping a damaged checkpoint") == done
    for _ in range(20):
        assert not _notices(saved.path(NEW))
    found = checkpoint_to_resume(config_of(), saved, control)
    assert found is not None
    assert found[1].step == NEW


def test_sizes_alone_would_not_notice(saved: CheckpointStore) -> None:
    missed: list[str] = []

    def look(what: str) -> None:
        with suppress(CheckpointError):
            check_sizes(saved.path(NEW), read_manifest(saved.path(NEW)))
            missed.append(what)

    _each_damage(saved, look)
    assert any(what.startswith("_flip tensors") for what in missed)
    assert any(what.startswith("_swap") for what in missed)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.canary), "w"))


def _pickled(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def _torch_saved(path: Path, bomb: Bomb) -> None:
    torch.save({"weight": bomb}, path)


def _yaml(path: Path, bomb: Bomb) -> None:
    path.write_text(f"model: !!python/object/apply:builtins.open ['{bomb.canary}', 'w']\n")


def _seal(checkpoint: Path) -> Manifest:
    """Let the manifest say of each file what it is now: a hash is no signature."""
    manifest = read_manifest(checkpoint)
    files: dict[str, FileFacts] = {name: file_facts(checkpoint / name) for name in manifest.files}
    (checkpoint / MANIFEST).write_text(replace(manifest, files=files).to_json())
    return read_manifest(checkpoint)


def _read_all(checkpoint: Path, is_sealed: bool, control: Group) -> None:
    if is_sealed:
        _seal(checkpoint)
    found = checkpoint_to_resume(config_of(resume=str(checkpoint)), CheckpointStore(checkpoint), control)
    assert found is not None
    TensorFolder(checkpoint, found[1].files)
    from_yaml((checkpoint / CONFIG).read_text(encoding="utf-8", errors="replace"))


@pytest.mark.parametrize("plant", [_pickled, _torch_saved, _yaml])
@pytest.mark.parametrize("name", [TENSORS[0], CONFIG, MANIFEST])
@pytest.mark.parametrize("is_sealed", [False, True], ids=["", "sealed"])
def test_nothing_in_a_checkpoint_is_run(
    saved: CheckpointStore,
    name: str,
    plant: Callable[[Path, Bomb], None],
    is_sealed: bool,
    control: Group,
    tmp_path: Path,
) -> None:
    checkpoint, canary = tmp_path / "step_2", tmp_path / "canary"
    shutil.copytree(saved.path(NEW), checkpoint)
    plant(checkpoint / name, Bomb(canary))
    with pytest.raises(TridentError):
        _read_all(checkpoint, is_sealed, control)
    assert not canary.exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    _pickled(tmp_path / "x", Bomb(canary))
    pickle.loads((tmp_path / "x").read_bytes()).close()
    assert canary.exists()
