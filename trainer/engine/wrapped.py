"""What both engine faces share: a DeepSpeed engine with its plan, its groups and the clock of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import deepspeed
import torch

from trainer.config.plan import RunPlan
from trainer.data.batches import MicroBatch
from trainer.engine import masters
from trainer.engine.deepspeed_engines import DrivenEngine
from trainer.engine.face import Fragment, ReadShard, Recorded, StepResult
from trainer.engine.own_time import OwnTime
from trainer.engine.recording import Recorder
from trainer.tensor_parallel.random import StepClock
from trainer.tensor_parallel.shard import ShardSpec, shard_spec
from trainer.topology.groups import ParallelGroups


class WrappedEngine:
    """The part of `Engine` that does not depend on how a step is run.

    Args:
        engine: of DeepSpeed, one of `deepspeed_engines`.
        plan: numbers of the run.
        groups: this rank's place.
        clock: tells dropout where in the run it is.
    """

    def __init__(self, engine: DrivenEngine, plan: RunPlan, groups: ParallelGroups, clock: StepClock) -> None:
        self._engine = engine
        self._plan = plan
        self._groups = groups
        self._clock = clock
        self._own_time = OwnTime(groups.device, groups.tensor)
        engine.own_time = self._own_time

    def _begin_step(self, step: int, learning_rate: float, loss_limit: float) -> None:
        self._engine.gate.begin_step(loss_limit)
        if self._plan.zero_stage < 3:
            self._own_time.begin_step()
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = learning_rate
        plan = self._plan
        self._clock.start_step(
            step, self._groups.samples.rank, self._groups.samples.size, plan.config.batch.micro_batch_size
        )

    def _result(self, loss: torch.Tensor) -> StepResult:
        """Collect loss and gradient norm as device tensors, without reading them."""
        norm = self._engine.get_global_grad_norm()
        if norm is None:
            raise RuntimeError("DeepSpeed must report a gradient norm after a step, but reported none")
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self._groups.device).reshape(())
        # Known to the host: it decided whether the optimizer runs.
        return StepResult(loss, norm, skipped=bool(self._engine.sharding.optimizer.overflow))

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the mean loss: how it is computed depends on the engine."""
        raise NotImplementedError

    def record(self, micro_batches: Sequence[MicroBatch]) -> list[Recorded]:
        """Evaluate, and return checksums of all results on the way."""
        recorder = Recorder()
        with recorder.listening(self._engine.module, self._groups.tensor):
            self.evaluate(micro_batches)
        return recorder.read()

    def loss_scale(self) -> float | None:
        """Return the dynamic loss scale in fp16."""
        return float(self._engine.sharding.optimizer.cur_scale) if self._engine.fp16_enabled() else None

    def take_own_seconds(self) -> float:
        """Return the mean seconds of a step's first forward pass, NaN with ZeRO-3, where none is measured."""
        return self._own_time.take()

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        """Return this rank's shards by global name; what ZeRO-3 has cut is gathered first."""
        parameters = list(self._engine.module.parameters())
        sharded = [p for p in parameters if hasattr(p, "ds_id")]
        found: dict[str, torch.Tensor] = {}
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            for parameter in parameters:
                found[shard_spec(parameter).name] = parameter.detach().to("cpu", torch.float32, copy=True)
        return found

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        """Return how each local parameter is cut."""
        specs = (shard_spec(parameter) for parameter in self._engine.module.parameters())
        return {spec.name: spec for spec in specs}

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank has to write."""
        return masters.fragments(self._engine.sharding, self._groups)

    def scalars(self) -> dict[str, float]:
        """Return counters and loss scale."""
        return masters.scalars(self._engine)

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        """Take a checkpoint's state."""
        masters.restore(self._engine, read, scalars)
