"""A model with rotary positions goes on with sequences of another length, in every kind of engine.

Loading asks for the loss on the fixed micro-batch at the length of the run that saved, and refuses another one; what
follows has the length of the run, and the oracle's losses.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.dist.resume_fixtures import Run, Trainer, run_config
from tests.helpers.dist import run_distributed
from tests.helpers.parity import OPTIMIZER, TOLERANCES, VOCABULARY, Case
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.store import find_checkpoint
from trainer.oracle.reference import reference_loss

pytestmark = [pytest.mark.dist, pytest.mark.timeout(300)]

CASES = (
    Case(tp=2, sequence_parallel=True, llama=True),
    Case(pp=2, llama=True, num_micro_batches=4),
    Case(pp=2, llama=True, num_micro_batches=4, schedule="dualpipev"),
)
RUNS = tuple(Run(case, num_layers=4) for case in CASES)
LONG = 16
"""Twice the length of what was saved."""


def _tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (4, LONG + 1), generator=torch.Generator().manual_seed(7))


def _save(rank: int, world_size: int, folder: Path) -> None:
    trainer = Trainer(RUNS[1], rank, world_size, folder)
    trainer.train(1)
    trainer.save()


def _go_on(rank: int, world_size: int, runs: Sequence[Run], folder: Path) -> list[tuple[float, float]]:
    from trainer.micro_batch import MicroBatch

    seen = []
    for run in runs:
        trainer = Trainer(replace(run, seq_length=LONG), rank, world_size, folder, is_resumed=True)
        trainer.resume()
        rows = [row.unsqueeze(0) for row in _tokens()]
        batches = [MicroBatch.of(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]
        evaluated = float(trainer.engine.evaluate(batches).loss)
        trained = float(trainer.engine.train_step(batches, OPTIMIZER.lr).loss)
        seen.append((evaluated, trained))
        del trainer
        gc.collect()
    return seen


def test_it_goes_on_at_another_length_in_every_kind_of_engine(tmp_path: Path) -> None:
    run_distributed(_save, 2, tmp_path, timeout_s=120)
    path, manifest = find_checkpoint(tmp_path)
    tensors = TensorFolder(path, manifest.files)
    weights = {name: tensors.read("weight", name) for name in tensors.names()}
    tokens = _tokens()
    expected = float(reference_loss(run_config(RUNS[0]).model, weights, tokens[:, :-1], tokens[:, 1:]))
    tolerance = TOLERANCES["fp32"].loss
    for rank in run_distributed(_go_on, 2, RUNS, tmp_path, timeout_s=200):
        for run, (evaluated, trained) in zip(RUNS, rank, strict=True):
            assert evaluated == pytest.approx(expected, rel=tolerance), run.name
            assert trained == pytest.approx(expected, rel=tolerance), run.name
