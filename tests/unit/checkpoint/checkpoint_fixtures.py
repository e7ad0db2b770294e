"""What the tests of checkpoints share: an engine of one small tensor, and a run that saves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch

from trainer.checkpoint.checkpoint_hook import CheckpointHook
from trainer.checkpoint.fragments import TensorFolder
from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.config.plan import RunPlan, make_plan
from trainer.config.schema import CheckpointConfig, LayoutConfig, ModelConfig, TridentConfig
from trainer.engine.face import Evaluation, Fragment, ReadShard, Recorded, StepResult
from trainer.loop.events import RunEnd, StepReport
from trainer.loop.measures import Measures
from trainer.loop.state import TrainState
from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel.shard import ShardSpec, shard
from trainer.topology.groups import Group, ParallelGroups, single_process_groups

FULL = torch.arange(8.0)
SPEC = ShardSpec("w", (8,), 0, (8,))
KINDS = ("weight", "exp_avg", "exp_avg_sq")
TENSOR_FILE = "tensors/rank_00000.safetensors"


def cut(
    full: torch.Tensor, spec: ShardSpec, tp_rank: int = 0, tp: int = 1, at: Sequence[int] = (), kind: str = "weight"
) -> list[Fragment]:
    """Return one tensor-parallel rank's shard of a tensor in fragments that begin at 0 and `at`."""
    flat = shard(full, spec, tp_rank, tp).reshape(-1)
    edges = [0, *sorted(at), flat.numel()]
    return [
        Fragment(kind, spec, tp_rank, tp, start, flat[start:end].clone())
        for start, end in pairwise(edges)
        if end > start
    ]


class FakeEngine:
    """Saves FULL + the number of saves, and moments that are ten and a hundred times as large.

    `fails` is raised in the middle of the next save, or by the next load.
    """

    def __init__(self, rank: int = 0, tp_rank: int = 0, tp: int = 1) -> None:
        self.place = (tp_rank, tp)
        self.rank = rank
        self.fails: Exception | None = None
        self.saves = 0
        self.probe = 4.5
        self.loaded: dict[str, torch.Tensor] = {}
        self.loaded_scalars: Mapping[str, float] = {}

    def values(self, kind: str) -> torch.Tensor:
        return (FULL + self.saves) * (1.0, 10.0, 100.0)[KINDS.index(kind)]

    def fragments(self, only_trained: bool = False) -> Iterator[Fragment]:
        self.saves += 1
        for kind in KINDS:
            yield from cut(self.values(kind), SPEC, *self.place, kind=kind)
            if self.fails is not None:
                raise self.fails

    def scalars(self) -> dict[str, float]:
        return {"optimizer_step": float(self.saves), "skipped_steps": 0.0}

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        if self.fails is not None:
            raise self.fails
        self.loaded = {kind: read(kind, SPEC) for kind in KINDS}
        self.loaded_scalars = scalars

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext()

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        raise AssertionError

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        raise AssertionError

    def train_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float = 0.0
    ) -> StepResult:
        raise AssertionError

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
        return Evaluation(torch.tensor(self.probe), torch.tensor(16.0))

    def loss_scale(self) -> float | None:
        raise AssertionError

    def skipped_steps(self) -> int:
        raise AssertionError

    def record(self, micro_batches: Sequence[MicroBatch]) -> list[Recorded]:
        raise AssertionError

    def take_own_seconds(self) -> float:
        return 0.002

    def held_bytes(self) -> Mapping[str, int]:
        raise AssertionError

    def take_busy_seconds(self) -> float:
        raise AssertionError


def config_of(**checkpoint: object) -> TridentConfig:
    return TridentConfig(model=ModelConfig(seq_length=16), checkpoint=CheckpointConfig(**checkpoint))  # type: ignore[arg-type]


def plan_of(
    every: int = 2,
    keep: int = 9,
    save_final: bool = True,
    layout: LayoutConfig | None = None,
    vocab_size: int = 100,
    **checkpoint: object,
) -> RunPlan:
    """Saves are waited for unless told otherwise: what a test does next must not depend on a thread."""
    settings = {"asynchronous": False, **checkpoint}
    config = TridentConfig(
        model=ModelConfig(seq_length=16),
        layout=layout or LayoutConfig(),
        checkpoint=CheckpointConfig(every=every, keep=keep, save_final=save_final, **settings),  # type: ignore[arg-type]
    )
    return make_plan(config, vocab_size)


class Run:
    """A hook with its collaborators, and the loop's part in it."""

    def __init__(
        self,
        run_dir: Path,
        control: Group,
        plan: RunPlan | None = None,
        step: int = 0,
        engine: FakeEngine | None = None,
        groups: ParallelGroups | None = None,
        background: Group | None = None,
    ) -> None:
        self.store = CheckpointStore(run_dir)
        self.engine = engine or FakeEngine()
        self.state = TrainState(step, sample_length=8)
        self.measures = Measures()
        self._has_started = False
        groups = replace(groups or single_process_groups(), control=control)
        self.hook = CheckpointHook(
            self.store,
            self.engine,
            plan or plan_of(),
            self.state,
            groups,
            background or control,
            self.measures,
        )

    def steps(self, last: int) -> None:
        if not self._has_started:
            self.hook.on_start(self.state.step + 1)
            self._has_started = True
        for step in range(self.state.step + 1, last + 1):
            self.state.step = step
            self.state.position += 12
            self.state.tokens_seen += 10
            self.hook.on_step(step)
            self.hook.on_report(cast(StepReport, None))

    def end(self, status: str) -> None:
        self.hook.on_end(RunEnd(status, self.state.step, 1.0))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.store.folder.iterdir())

    def saved(self, step: int) -> dict[str, torch.Tensor]:
        return tensors_of(self.store.path(step))


def tensors_of(checkpoint: Path, manifest: Manifest | None = None) -> dict[str, torch.Tensor]:
    """Return `w` of every kind."""
    from trainer.checkpoint.manifest import read_manifest

    tensors = TensorFolder(checkpoint, (manifest or read_manifest(checkpoint)).files)
    return {kind: tensors.read(kind, "w") for kind in KINDS}
