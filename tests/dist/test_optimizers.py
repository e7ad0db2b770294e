"""Every optimizer: ten steps in pipeline, tensor and data parallel ranks, five of them after a change of layout.

A plain single-process loop is the oracle: losses relative and weights relative to their norms to 1e-5, which fp32 sums
in another order stay below (tests/helpers/parity.py).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from tests.dist.resume_fixtures import Run, Trainer, interrupt, run_config, tokens_of, train_sources
from tests.helpers.batches import of_rows
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZERS, Case, errors_of, initial_weights, relative, run_cases, tolerance_of
from tests.helpers.reference import ReferenceRun, train_reference
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import CheckpointStore

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

SAVED, LAST = 5, 10
TOLERANCE = 1e-5
NAMES = tuple(name for name in OPTIMIZERS if name != "adamw")
_BASE = Case(pp=2, tp=2, dp=2, zero=1, llama=True, tied=False)
FIRST = {name: Run(replace(_BASE, optimizer=name), saved=SAVED, last=SAVED) for name in NAMES}
SECOND = {
    name: Run(Case(tp=2, zero=0, llama=True, tied=False, optimizer=name), saved=SAVED, last=LAST) for name in NAMES
}
STAGES: tuple[tuple[Case, ...], ...] = (
    tuple(
        Case(dp=2, zero=stage, llama=True, tied=stage == 2, optimizer=name) for name in NAMES for stage in (0, 1, 2, 3)
    ),
)
"""Each way in which DeepSpeed keeps an optimizer; the layouts of the ten steps are the others."""


@dataclass(frozen=True)
class WentOn:
    """What one rank saw of a run that went on in another layout."""

    losses: list[float]


def _go_on(rank: int, world_size: int, runs: Mapping[str, Run], folder: Path) -> dict[str, WentOn]:
    """Go on with each run in a layout of its own, and save the last step."""
    found = {}
    for name, run in runs.items():
        trainer = Trainer(run, rank, world_size, folder / name, is_resumed=True)
        trainer.resume()
        losses = [loss for loss, _ in trainer.train(run.last)]
        trainer.save()
        found[name] = WentOn(losses)
        del trainer
        gc.collect()
    return found


@cache
def oracle(name: str) -> ReferenceRun:
    """Return ten steps of an optimizer in one process."""
    config, chosen = run_config(SECOND[name]), OPTIMIZERS[name]
    steps = [[of_rows(tokens_of(step), None)] for step in range(1, LAST + 1)]
    return train_reference(config.model, initial_weights(config), steps, chosen.config, factor=chosen.factor)


def test_ten_steps_over_a_change_of_layout_equal_those_of_one_process(tmp_path: Path) -> None:
    run_distributed(train_sources, 8, FIRST, tmp_path, timeout_s=200)
    went_on = run_distributed(_go_on, 2, SECOND, tmp_path, timeout_s=200)
    for name in NAMES:
        expected = oracle(name)
        for rank in went_on:
            assert rank[name].losses == pytest.approx(expected.losses[SAVED:], rel=TOLERANCE), name
        path = CheckpointStore(tmp_path / name).path(LAST)
        found = TensorFolder(path, read_manifest(path).files)
        assert set(found.names()) == set(expected.weights)
        wrong = {weight: relative(found.read("weight", weight), whole) for weight, whole in expected.weights.items()}
        assert max(wrong.values()) < TOLERANCE, f"{name}: {max(wrong, key=lambda one: wrong[one])}"


@pytest.mark.parametrize("cases", STAGES, ids=["dp2"])
def test_every_way_of_keeping_it_equals_the_oracle(cases: Sequence[Case]) -> None:
    outcomes = run_distributed(run_cases, cases[0].world_size, cases, timeout_s=200)
    for index, case in enumerate(cases):
        errors, tolerance = errors_of(case, [rank[index] for rank in outcomes]), tolerance_of(case)
        assert errors.loss < tolerance.loss, case.name
        assert errors.gradient < tolerance.gradient, f"{case.name}: {errors.gradient_name}"
        assert errors.weight < tolerance.weight, f"{case.name}: {errors.weight_name}"


def test_the_same_layout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    runs = [
        Run(Case(tp=2, zero=stage, llama=True, tied=False, dtype=dtype, optimizer=name))
        for name in NAMES
        for stage, dtype in ((0, "fp32"), (1, "bf16"))
    ]
    for rank in run_distributed(interrupt, 2, runs, tmp_path, timeout_s=200):
        for run, outcome in zip(runs, rank, strict=True):
            assert outcome.resumed == outcome.went_on, run.name
            assert outcome.wrong == [], run.name
