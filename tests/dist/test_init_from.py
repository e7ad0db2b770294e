"""A run that begins with another one's weights has nothing else of it, in every kind of engine.

Its losses are those of the oracle, a plain loop with a new AdamW that begins with the same weights.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.dist.resume_fixtures import Run, Trainer, run_config, tokens_of
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZER, TOLERANCES, Case
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.store import find_checkpoint
from trainer.oracle.reference import train_reference

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

LAST = 4
SOURCE = Run(Case(zero=0))
TARGETS: tuple[tuple[Run, ...], ...] = (
    (Run(Case(zero=0)), Run(Case(offload="cpu"))),
    (Run(Case(dp=2, zero=3)), Run(Case(pp=2, zero=0)), Run(Case(tp=2, zero=1)), Run(Case(dp=2, dtype="fp16"))),
)


@dataclass(frozen=True)
class Begun:
    """What one rank saw of a run that began with weights alone."""

    step: int
    is_fresh: bool
    """Whether moments and counters are those of an engine that was never stepped."""
    losses: list[float]
    again: list[float]
    """After the same engine went back to the beginning."""


def _save(rank: int, world_size: int, folder: Path) -> None:
    trainer = Trainer(SOURCE, rank, world_size, folder)
    trainer.train(3)
    trainer.save()


def _begin(rank: int, world_size: int, runs: Sequence[Run], source: Path, folder: Path) -> list[Begun]:
    from trainer.checkpoint.resume import checkpoint_to_resume, load, starting_state

    seen = []
    for index, run in enumerate(runs):
        trainer = Trainer(run, rank, world_size, folder / str(index))
        checkpoint = replace(trainer.plan.config.checkpoint, init_from=str(source))
        trainer.plan = replace(trainer.plan, config=replace(trainer.plan.config, checkpoint=checkpoint))
        scalars = trainer.engine.scalars()
        found = checkpoint_to_resume(trainer.plan.config, trainer.store, trainer.groups.control)
        assert found is not None
        curves: list[list[float]] = []
        for _ in range(2):
            trainer.state = starting_state(found, trainer.plan, "")
            load(found, trainer.engine, trainer.plan, trainer.groups)
            if not curves:
                step = trainer.state.step
                moments = [f.values for f in trainer.engine.fragments() if f.kind != "weight"]
                # Local, and so are the counters: each rank looks at its own.
                is_fresh = trainer.engine.scalars() == scalars and not any(bool(m.any()) for m in moments)
            curves.append([loss for loss, _ in trainer.train(LAST)])
        seen.append(Begun(step, is_fresh, *curves))
        del trainer
        gc.collect()
    return seen


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    run_distributed(_save, 1, folder, timeout_s=120)
    return folder


@pytest.fixture(scope="module")
def expected(source: Path) -> tuple[float, ...]:
    """Losses of the oracle."""
    path, manifest = find_checkpoint(source)
    tensors = TensorFolder(path, manifest.files)
    weights = {name: tensors.read("weight", name) for name in tensors.names()}
    steps = [[(tokens[:, :-1], tokens[:, 1:])] for tokens in map(tokens_of, range(1, LAST + 1))]
    return train_reference(run_config(SOURCE).model, weights, steps, OPTIMIZER).losses


@pytest.mark.parametrize("runs", TARGETS, ids=lambda runs: f"world{runs[0].case.world_size}")
def test_weights_alone_train_as_with_a_new_optimizer(
    runs: tuple[Run, ...], source: Path, expected: tuple[float, ...], tmp_path: Path
) -> None:
    outcomes = run_distributed(_begin, runs[0].case.world_size, runs, source, tmp_path, timeout_s=120)
    for rank in outcomes:
        for run, begun in zip(runs, rank, strict=True):
            assert (begun.step, begun.is_fresh) == (0, True), run.name
            tolerance = TOLERANCES[run.case.dtype].loss
            assert begun.losses == pytest.approx(expected, rel=tolerance), run.name
            # The loss scale of fp16 stays where it has found its place.
            again = begun.losses if run.case.dtype == "fp32" else pytest.approx(begun.losses, rel=tolerance)
            assert begun.again == again, f"{run.name}: something was left of the steps since"
