"""Train a part of a run, save, load in the same or another layout, go on: what the tests of resuming share.

Functions that take `rank` run in forked ranks; several cases follow one another in the same ranks.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.helpers.batches import micro_batches_of
from tests.helpers.parity import VOCABULARY, Case, config_of, plan_of
from trainer.config.schema import DataConfig, DataSource, TridentConfig
from trainer.engine.face import Engine
from trainer.spec.model import Model

GLOBAL_BATCH = 4
SAVED, LAST = 3, 7


@dataclass(frozen=True)
class Run:
    """A case of the parity tests, and what matters to resuming besides."""

    case: Case
    dropout: float = 0.0
    initial_scale_power: int = 8
    """fp16: 2^24 overflows for some steps, 2^40 for all of them."""
    saved: int = SAVED
    last: int = LAST
    family: Callable[[Model], Model] | None = None
    """Makes another model of the one that the config describes."""
    num_layers: int | None = None
    """None: as many as the case's layout needs."""
    seq_length: int | None = None
    """None: that of the parity tests."""

    @property
    def name(self) -> str:
        parts = [self.case.name, *(["dropout"] if self.dropout else [])]
        return "-".join(parts + [f"scale{self.initial_scale_power}"] * (self.case.dtype == "fp16"))


def run_config(run: Run) -> TridentConfig:
    """Return a config whose global batch is the same in every layout."""
    config = config_of(run.case)
    # A multiple of 5 pads the vocabulary differently for each tensor-parallel size.
    model = replace(config.model, dropout=run.dropout, attention_dropout=run.dropout, vocab_pad_multiple=5)
    if run.num_layers is not None:
        model = replace(model, num_layers=run.num_layers)
    if run.seq_length is not None:
        model = replace(model, seq_length=run.seq_length)
    return replace(
        config,
        model=model,
        # What the command line would accept; `tokens_of` is what is trained on.
        data=DataConfig(source=DataSource.synthetic),
        batch=replace(config.batch, global_batch_size=GLOBAL_BATCH, micro_batch_size=1),
        precision=replace(config.precision, initial_scale_power=run.initial_scale_power, loss_scale_window=2),
    )


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Let a draw of weights be an error."""
    with patch("trainer.tensor_parallel.init.draw_normal", side_effect=AssertionError("weights must not be drawn")):
        yield


def tokens_of(step: int) -> torch.Tensor:
    """Return the global batch of a step: [GLOBAL_BATCH, seq_length + 1]."""
    return torch.randint(0, VOCABULARY, (GLOBAL_BATCH, 9), generator=torch.Generator().manual_seed(100 + step))


class Trainer:
    """An engine in its ranks, with what the loop and the composition root do around it."""

    def __init__(self, run: Run, rank: int, world_size: int, run_dir: Path, is_resumed: bool = False) -> None:
        from trainer.checkpoint.store import CheckpointStore
        from trainer.engine.build import build_engine
        from trainer.engine.world import start_world
        from trainer.loop.state import TrainState
        from trainer.tensor_parallel.init import Reserved

        self.plan = plan_of(run.case, run_config(run), world_size)
        if run.family is not None:
            self.plan = replace(self.plan, model=run.family(self.plan.model))
        self.groups = start_world(self.plan.mesh, self.plan.config.runtime, torch.device("cpu"))
        source = Reserved(self.groups.tensor) if is_resumed else None
        self.engine: Engine = build_engine(self.plan, self.groups, source=source)
        self.store = CheckpointStore(run_dir)
        self.state = TrainState(sample_length=8)
        self._dp_rank = self.groups.mesh.coordinate(rank).dp_rank

    def train(self, last: int) -> list[tuple[float, float]]:
        """Train up to step `last`; return (loss, gradient norm) of each step."""
        seen = []
        for step in range(self.state.step + 1, last + 1):
            batches = micro_batches_of(tokens_of(step), self.plan, self._dp_rank, step)
            result = self.engine.train_step(batches, self.plan.config.optimizer.lr)
            seen.append((float(result.loss), float(result.grad_norm)))
            self.state.step = step
        return seen

    def save(self, run_dir: Path | None = None) -> None:
        from trainer.checkpoint.save import CheckpointWriter, take_snapshot
        from trainer.checkpoint.store import CheckpointStore

        store = self.store if run_dir is None else CheckpointStore(run_dir)
        writer = CheckpointWriter(store, self.plan, self.groups.control)
        writer.write(take_snapshot(self.engine, self.plan, self.state, self.groups))

    def resume(self) -> None:
        from trainer.checkpoint.resume import checkpoint_to_resume, load, starting_state

        found = checkpoint_to_resume(self.plan.config, self.store, self.groups.control)
        assert found is not None
        self.state = starting_state(found, self.plan, "")
        load(found, self.engine, self.plan, self.groups)

    def everything(self) -> dict[str, Any]:
        """Return all that this rank holds: masters, moments, what forward reads, counters."""
        held: dict[str, Any] = {
            f"{f.kind}/{f.spec.name}/{f.tp_rank}/{f.start}": f.values for f in self.engine.fragments()
        }
        held |= {f"local/{name}": tensor for name, tensor in self.engine.local_parameters().items()}
        return held | {f"scalar/{name}": value for name, value in self.engine.scalars().items()}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the names whose values are not the same bit for bit."""
    wrong = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        wrong += [] if same else [name]
    return wrong


@dataclass(frozen=True)
class SameLayout:
    """What one rank saw of a run that went on, and of its copy that was resumed."""

    went_on: list[tuple[float, float]]
    resumed: list[tuple[float, float]]
    wrong: list[str]
    scalars_when_saved: Mapping[str, float]


def interrupt(rank: int, world_size: int, runs: Sequence[Run], folder: Path) -> list[SameLayout]:
    """Train and save each run and go on; then resume it anew and go on as far."""
    outcomes = []
    for index, run in enumerate(runs):
        run_dir = folder / str(index)
        first = Trainer(run, rank, world_size, run_dir)
        first.train(run.saved)
        first.save()
        scalars = first.engine.scalars()
        went_on, expected = first.train(run.last), first.everything()
        del first
        with nothing_drawn():
            second = Trainer(run, rank, world_size, run_dir, is_resumed=True)
            second.resume()
        resumed = second.train(run.last)
        outcomes.append(SameLayout(went_on, resumed, differences(expected, second.everything()), scalars))
        del second
        gc.collect()
    return outcomes


def never_saved(rank: int, world_size: int, run: Run) -> list[tuple[float, float]]:
    """Train a run from beginning to end."""
    return Trainer(run, rank, world_size, Path("nowhere")).train(run.last)


def train_sources(rank: int, world_size: int, runs: Mapping[str, Run], folder: Path) -> dict[str, list[float]]:
    """Train each run, save it below its name, go on; return the losses after the save."""
    losses = {}
    for name, run in runs.items():
        trainer = Trainer(run, rank, world_size, folder / name)
        trainer.train(run.saved)
        trainer.save()
        losses[name] = [loss for loss, _ in trainer.train(run.last)]
        del trainer
        gc.collect()
    return losses


def load_pairs(
    rank: int, world_size: int, pairs: Sequence[tuple[str, str]], runs: Mapping[str, Run], folder: Path
) -> list[list[float]]:
    """Load each pair's source into its target layout, save at once again, go on; return the losses."""
    losses = []
    for source, target in pairs:
        trainer = Trainer(runs[target], rank, world_size, folder / source, is_resumed=True)
        trainer.resume()
        trainer.save(folder / f"{source}_in_{target}")
        losses.append([loss for loss, _ in trainer.train(runs[target].last)])
        del trainer
        gc.collect()
    return losses
