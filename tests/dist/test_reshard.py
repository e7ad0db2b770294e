"""A resharded checkpoint is what the ranks of its layout would have saved, and a run goes on from it as from the first.

Where ranks write what DeepSpeed does not cut up (one replica, or no ZeRO), their files are compared value for value.
`--run-slow` tries all 81 pairs of layouts.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.dist.resume_fixtures import SAVED, Run, differences, load_pairs, train_sources
from tests.dist.test_resume import LAYOUTS, WORLD_SIZES
from tests.helpers.dist import run_distributed
from tests.unit.checkpoint.reshard_fixtures import tensors_of
from trainer.checkpoint.manifest import check_content, read_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import main

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]

SAMPLE = [("1x1x2-zero3", "2x1x1"), ("2x1x1", "1x2x1"), ("1x2x1", "1x1x2")]
"""Layouts of two ranks, so that the same ranks try all."""
PAIRS = [(source, target) for source in LAYOUTS for target in LAYOUTS]


def overrides(run: Run) -> list[str]:
    case = run.case
    return [
        f"layout.pipeline_parallel_size={case.pp}",
        f"layout.tensor_parallel_size={case.tp}",
        f"layout.data_parallel_size={case.dp}",
        f"layout.sequence_parallel={str(case.sequence_parallel).lower()}",
        f"zero.stage={case.zero}",
        f"zero.offload={case.offload}",
    ]


def train(names: Sequence[str], folder: Path) -> Mapping[str, list[float]]:
    """Train layouts of as many ranks, and save each below its name; return how each went on."""
    runs = {name: LAYOUTS[name] for name in names}
    world_size = runs[names[0]].case.world_size
    losses: dict[str, list[float]] = run_distributed(train_sources, world_size, runs, folder, timeout_s=300)[0]
    return losses


def saved(run_dir: Path) -> Path:
    return CheckpointStore(run_dir).path(SAVED)


def check_pairs(pairs: Sequence[tuple[str, str]], folder: Path) -> None:
    """Reshard each source to its target, and let the target's ranks go on from both.

    All targets have as many ranks.
    """
    resharded = {pair: f"{pair[0]}_to_{pair[1]}" for pair in pairs}
    for (source, target), name in resharded.items():
        assert main(["reshard", str(folder / source), str(folder / name), *overrides(LAYOUTS[target])]) == 0
        check_content(saved(folder / name), read_manifest(saved(folder / name)))
        wrong = differences(tensors_of(saved(folder / source)), tensors_of(saved(folder / name)))
        assert wrong == [], f"{source} -> {target}"
    both = [found for pair in pairs for found in (pair, (resharded[pair], pair[1]))]
    world_size = LAYOUTS[pairs[0][1]].case.world_size
    ranks = run_distributed(load_pairs, world_size, both, LAYOUTS, folder, timeout_s=60 + 20 * len(both))
    losses = dict(zip(both, ranks[0], strict=True))
    for pair, name in resharded.items():
        assert losses[name, pair[1]] == losses[pair], f"{pair}: losses after resuming"
        again, case = saved(folder / f"{pair[0]}_in_{pair[1]}"), LAYOUTS[pair[1]].case
        if case.dp == 1 or case.zero == 0:
            check_same_files(saved(folder / name), again, str(pair))
        for path in (folder / name, folder / f"{pair[0]}_in_{pair[1]}", folder / f"{name}_in_{pair[1]}"):
            shutil.rmtree(path)


def check_same_files(made: Path, by_ranks: Path, what: str) -> None:
    assert made.exists()
    names = sorted(path.name for path in (by_ranks / "tensors").iterdir())
    assert sorted(path.name for path in (made / "tensors").iterdir()) == names, what
    for name in names:
        first, second = load_file(made / "tensors" / name), load_file(by_ranks / "tensors" / name)
        assert differences(first, second) == [], f"{what}: {name}"


def test_a_run_goes_on_from_a_resharded_checkpoint(tmp_path: Path) -> None:
    train([source for source, _ in SAMPLE], tmp_path)
    check_pairs(SAMPLE, tmp_path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout, trained and saved."""
    folder = tmp_path_factory.mktemp("sources")
    for world_size in WORLD_SIZES:
        train([name for name, run in LAYOUTS.items() if run.case.world_size == world_size], folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_layout_is_resharded_to_every_other(world_size: int, sources: Path) -> None:
    check_pairs([pair for pair in PAIRS if LAYOUTS[pair[1]].case.world_size == world_size], sources)


@pytest.mark.slow
def test_there_and_back_the_files_are_the_same(sources: Path, tmp_path: Path) -> None:
    for source, target in PAIRS:
        there, back = tmp_path / "there", tmp_path / "back"
        assert main(["reshard", str(sources / source), str(there), *overrides(LAYOUTS[target])]) == 0
        assert main(["reshard", str(there), str(back), *overrides(LAYOUTS[source])]) == 0
        what, case = f"{source} -> {target} -> {source}", LAYOUTS[source].case
        assert differences(tensors_of(saved(sources / source)), tensors_of(saved(back))) == [], what
        if case.dp == 1 or case.zero == 0:
            check_same_files(saved(back), saved(sources / source), what)
        shutil.rmtree(there)
        shutil.rmtree(back)


def test_the_sample_is_of_two_ranks() -> None:
    assert len(PAIRS) == 81
    assert {LAYOUTS[name].case.world_size for pair in SAMPLE for name in pair} == {2}
