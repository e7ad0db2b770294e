"""Going back to a checkpoint inside a running process leaves nothing of the steps since, in any engine.

An engine that has trained beyond its checkpoint is loaded with it and trains the same steps again: losses, norms,
masters, moments and counters are those of the first time, bit for bit.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dist.resume_fixtures import Run, Trainer, differences
from tests.helpers.dist import run_distributed
from tests.helpers.parity import Case

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

RUNS: tuple[tuple[Run, ...], ...] = (
    (
        Run(Case(zero=0), last=5),
        Run(Case(zero=3, offload="cpu", offload_parameters=True), last=5),
        Run(Case(offload="cpu"), saved=10, last=12),
        Run(Case(dtype="bf16"), last=5),
    ),
    (
        Run(Case(dp=2, zero=2), dropout=0.2, last=5),
        Run(Case(dp=2, zero=2, offload="cpu", dtype="bf16"), last=5),
        Run(Case(dp=2, zero=3), last=5),
        Run(Case(dp=2, zero=1, dtype="fp16"), initial_scale_power=24, saved=4, last=8),
    ),
    (
        Run(Case(pp=2, zero=0), last=5),
        Run(Case(pp=2, offload="cpu"), last=5),
        Run(Case(pp=2, schedule="dualpipev", dtype="bf16"), dropout=0.2, last=5),
    ),
)


def _there_and_back(rank: int, world_size: int, runs: Sequence[Run], folder: Path) -> list[list[str]]:
    from trainer.checkpoint.rewind import rewind

    wrong = []
    for index, run in enumerate(runs):
        trainer = Trainer(run, rank, world_size, folder / str(index))
        trainer.state = replace(trainer.state, recent_losses=[3.0, 2.0])
        trainer.train(run.saved)
        trainer.save()
        first, expected = trainer.train(run.last), trainer.everything()
        trainer.state.position, trainer.state.recent_losses = 12345, [9.0]
        arguments = (None, trainer.plan, trainer.store, trainer.groups)
        trainer.state = rewind(trainer.engine, trainer.state, *arguments)
        state = trainer.state
        found = [] if (state.step, state.position, state.recent_losses) == (run.saved, 12345, [3.0, 2.0]) else ["state"]
        found += [] if trainer.train(run.last) == first else ["losses"]
        wrong.append(found + differences(expected, trainer.everything()))
        del trainer
        gc.collect()
    return wrong


@pytest.mark.parametrize("runs", RUNS, ids=lambda runs: runs[0].name)
def test_nothing_is_left_of_the_steps_since(runs: tuple[Run, ...], tmp_path: Path) -> None:
    for wrong in run_distributed(_there_and_back, runs[0].case.world_size, runs, tmp_path, timeout_s=120):
        assert dict(zip((run.name for run in runs), wrong, strict=True)) == {run.name: [] for run in runs}


def _without_a_checkpoint(rank: int, world_size: int, folder: Path) -> bool:
    from trainer.checkpoint.rewind import rewind

    trainer = Trainer(Run(Case()), rank, world_size, folder)
    trainer.train(2)
    state, before = trainer.state, trainer.everything()
    after = rewind(trainer.engine, state, None, trainer.plan, trainer.store, trainer.groups)
    return after is state and not differences(before, trainer.everything())


def test_without_a_checkpoint_the_run_goes_on_where_it_is(tmp_path: Path) -> None:
    assert run_distributed(_without_a_checkpoint, 1, tmp_path) == [True]
