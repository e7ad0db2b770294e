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

from tests.dist.resume_fixtures import Run, Trainer, differences, interrupt, run_config, tokens_of, train_sources
from tests.helpers.batches import micro_batches_of, of_rows
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZERS, Case, errors_of, initial_weights, relative, run_cases, tolerance_of
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import main
from trainer.oracle.reference import ReferenceRun, reference_loss, train_reference

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
    (
        Case(tp=2, dp=2, zero=1, options="cohere", optimizer="muon"),
        Case(tp=2, dp=2, zero=3, llama=True, tied=False, sequence_parallel=True, optimizer="muon"),
    ),
)
"""Each way in which DeepSpeed keeps an optimizer, and shards of both axes, also with rows that tensor-parallel ranks
share; the layouts of the ten steps are the others."""


@dataclass(frozen=True)
class WentOn:
    """What one rank saw of a run that went on in another layout."""

    losses: list[float]
    averaged: float | None
    """Loss of the average of the weights, if there is one, on the batch after the last step's."""
    wrong: list[str]
    """What evaluating the average has changed."""


def overrides(run: Run) -> list[str]:
    """Return the words that say a run's layout."""
    case = run.case
    sizes = {"pipeline": case.pp, "tensor": case.tp, "data": case.dp}
    return [f"layout.{axis}_parallel_size={size}" for axis, size in sizes.items()] + [f"zero.stage={case.zero}"]


def _of_average(trainer: Trainer, rank: int) -> float:
    dp_rank = trainer.groups.mesh.coordinate(rank).dp_rank
    with trainer.engine.averaged():
        return float(trainer.engine.evaluate(micro_batches_of(tokens_of(LAST + 1), trainer.plan, dp_rank)).loss)


def _evaluate_averages(rank: int, world_size: int, runs: Sequence[Run], folder: Path) -> list[WentOn]:
    """Train a step of each run, evaluate the average of its weights, and train another."""
    found = []
    for run in runs:
        trainer = Trainer(run, rank, world_size, folder)
        trainer.train(1)
        before = trainer.everything()
        averaged = _of_average(trainer, rank)
        wrong = differences(before, trainer.everything())
        found.append(WentOn([loss for loss, _ in trainer.train(2)], averaged, wrong))
        del trainer
        gc.collect()
    return found


def _go_on(rank: int, world_size: int, runs: Mapping[str, Run], folder: Path) -> dict[str, WentOn]:
    """Go on with each run in a layout of its own, and save the last step."""
    found = {}
    for name, run in runs.items():
        trainer = Trainer(run, rank, world_size, folder / name, is_resumed=True)
        trainer.resume()
        losses = [loss for loss, _ in trainer.train(run.last)]
        trainer.save()
        averaged, before = None, trainer.everything()
        if trainer.plan.config.optimizer.ema_decay is not None:
            averaged = _of_average(trainer, rank)
        found[name] = WentOn(losses, averaged, differences(before, trainer.everything()))
        del trainer
        gc.collect()
    return found


@cache
def oracle(name: str) -> ReferenceRun:
    """Return ten steps of an optimizer in one process."""
    config, chosen = run_config(SECOND[name]), OPTIMIZERS[name]
    steps = [[of_rows(tokens_of(step), None)] for step in range(1, LAST + 1)]
    return train_reference(
        config.model, initial_weights(config), steps, chosen.config, factor=chosen.factor, decay_factor=chosen.decay
    )


def test_ten_steps_over_a_change_of_layout_equal_those_of_one_process(tmp_path: Path) -> None:
    run_distributed(train_sources, 8, FIRST, tmp_path, timeout_s=200)
    for name, run in FIRST.items():
        trained = tmp_path / "resharded" / name
        assert main(["reshard", str(tmp_path / name), str(trained), *overrides(SECOND[name])]) == 0, run.name
    went_on = run_distributed(_go_on, 2, SECOND, tmp_path / "resharded", timeout_s=200)
    for name in NAMES:
        expected = oracle(name)
        for rank in went_on:
            assert rank[name].losses == pytest.approx(expected.losses[SAVED:], rel=TOLERANCE), name
        path = CheckpointStore(tmp_path / "resharded" / name).path(LAST)
        found = TensorFolder(path, read_manifest(path).files)
        assert set(found.names()) == set(expected.weights)
        if expected.average:
            losses = {rank[name].averaged for rank in went_on}
            row = of_rows(tokens_of(LAST + 1), None)
            assert losses.pop() == pytest.approx(
                float(reference_loss(run_config(SECOND[name]).model, expected.average, *row)), rel=TOLERANCE
            )
            averages = {n: relative(found.read("ema", n), whole) for n, whole in expected.average.items()}
            assert max(averages.values()) < TOLERANCE, f"{name}: {max(averages, key=lambda one: averages[one])}"
        assert [rank[name].wrong for rank in went_on] == [[], []]
        wrong = {weight: relative(found.read("weight", weight), whole) for weight, whole in expected.weights.items()}
        assert max(wrong.values()) < TOLERANCE, f"{name}: {max(wrong, key=lambda one: wrong[one])}"


@pytest.mark.parametrize("cases", STAGES, ids=["dp2", "tp2-dp2"])
def test_every_way_of_keeping_it_equals_the_oracle(cases: Sequence[Case]) -> None:
    outcomes = run_distributed(run_cases, cases[0].world_size, cases, timeout_s=200)
    for index, case in enumerate(cases):
        errors, tolerance = errors_of(case, [rank[index] for rank in outcomes]), tolerance_of(case)
        assert errors.loss < tolerance.loss, case.name
        assert errors.gradient < tolerance.gradient, f"{case.name}: {errors.gradient_name}"
        assert errors.weight < tolerance.weight, f"{case.name}: {errors.weight_name}"


def test_an_evaluated_average_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    """Each way of keeping an optimizer, and bf16 weights that are rounded from their masters."""
    ema = Case(dp=2, llama=True, tied=False, optimizer="ema")
    runs = [Run(replace(ema, zero=stage)) for stage in (0, 1, 2, 3)]
    runs += [Run(replace(ema, zero=1, offload="cpu")), *(Run(replace(ema, zero=z, dtype="bf16")) for z in (1, 2, 3))]
    ranks = run_distributed(_evaluate_averages, 2, runs, tmp_path, timeout_s=200)
    for index, run in enumerate(runs):
        seen, plain = [rank[index] for rank in ranks], ranks[0][0]
        assert [one.wrong for one in seen] == [[], []], run.name
        rel = 1e-5 if run.case.dtype == "fp32" else 1e-2
        assert seen[0].averaged == seen[1].averaged == pytest.approx(plain.averaged, rel=rel), run.name
        assert seen[0].losses == pytest.approx(plain.losses, rel=rel), run.name


def test_the_same_layout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    kept = {"rates": (0, "fp32"), "ema": (1, "bf16"), "muon": (1, "bf16"), "lion": (0, "fp32")}
    assert kept.keys() == set(NAMES)
    runs = [
        Run(Case(tp=2, zero=stage, llama=True, tied=False, dtype=dtype, optimizer=name))
        for name, (stage, dtype) in kept.items()
    ]
    for rank in run_distributed(interrupt, 2, runs, tmp_path, timeout_s=200):
        for run, outcome in zip(runs, rank, strict=True):
            assert outcome.resumed == outcome.went_on, run.name
            assert outcome.wrong == [], run.name
