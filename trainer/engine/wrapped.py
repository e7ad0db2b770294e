"""The part that both engine faces share: a DeepSpeed engine with its plan and its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import deepspeed
import torch

from trainer.config.plan import RunPlan
from trainer.engine import masters
from trainer.engine.deepspeed_engines import DrivenEngine
from trainer.engine.face import Evaluation, Fragment, ReadShard, Recorded, StepResult
from trainer.engine.global_batch import loss_of, parts_of_a_batch
from trainer.engine.held import held_bytes
from trainer.engine.optimizer import set_learning_rate
from trainer.engine.own_time import OwnTime
from trainer.engine.recording import Recorder
from trainer.micro_batch import MicroBatch
from trainer.tensor_parallel.shard import ShardSpec, joined_shards, shard_spec
from trainer.topology.groups import ParallelGroups


class WrappedEngine:
    """The part of `Engine` that does not depend on how a step is run.

    Args:
        engine: DeepSpeed's engine, one of `deepspeed_engines`.
        plan: numbers of the run.
        groups: this rank's place.
    """

    def __init__(self, engine: DrivenEngine, plan: RunPlan, groups: ParallelGroups) -> None:
        self._engine = engine
        self._plan = plan
        self._groups = groups
        self._own_time = OwnTime(groups.device, groups.tensor)
        engine.own_time = self._own_time

    def _begin_step(
        self, micro_batches: Sequence[MicroBatch], learning_rate: float, loss_limit: float
    ) -> list[MicroBatch]:
        """Prepare a step, and return its micro-batches as parts of their global batch.

        Collective over the ranks that average gradients; no host sync.
        """
        parts, counted = parts_of_a_batch(micro_batches, self._groups.gradients)
        if len(parts) != self._engine.gradient_accumulation_steps():
            # The warm-up of the batch: DeepSpeed counts micro-batches, over all steps, to find the last one of a step.
            self._engine.micro_steps = 0
            rounds = self._plan.micro_batch_size * self._plan.data_parallel_size
            self._engine.set_train_batch_size(len(parts) * rounds)
        self._engine.gate.begin_step(loss_limit, counted)
        if self._plan.zero_stage < 3:
            self._own_time.begin_step()
        set_learning_rate(self._engine.basic_optimizer.param_groups, learning_rate)
        return parts

    def _result(self) -> StepResult:
        """Collect loss and gradient norm as device tensors, without reading them."""
        norm = self._engine.get_global_grad_norm()
        if norm is None:
            raise RuntimeError("DeepSpeed must report a gradient norm after a step, but reported none")
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self._groups.device).reshape(())
        # The host knows this: it decided whether the optimizer runs.
        skipped, gate = bool(self._engine.sharding.optimizer.overflow), self._engine.gate
        return StepResult(gate.loss, norm, skipped, is_empty=skipped and gate.is_empty())

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> Evaluation:
        """Return the loss of a global batch."""
        parts, counted = parts_of_a_batch(micro_batches, self._groups.gradients)
        return Evaluation(loss_of(self._evaluate(parts), counted), counted)

    def _evaluate(self, parts: Sequence[MicroBatch]) -> torch.Tensor:
        """Return the mean over micro-batches and data-parallel ranks, in the way of the engine."""
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
        """Return the mean seconds of a step's first forward pass; NaN with ZeRO-3, which measures none."""
        return self._own_time.take()

    def held_bytes(self) -> Mapping[str, int]:
        """Return the bytes of tensors on this rank's device, by purpose."""
        return held_bytes(self._engine, self._groups.device)

    def local_parameters(self) -> Mapping[str, torch.Tensor]:
        """Return this rank's shards by global name; parameters that ZeRO-3 has sharded are gathered first."""
        parameters = list(self._engine.module.parameters())
        sharded = [p for p in parameters if hasattr(p, "ds_id")]
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            values = ((one, one.detach().to("cpu", torch.float32, copy=True)) for one in parameters)
            return joined_shards(values)

    def shard_specs(self) -> Mapping[str, ShardSpec]:
        """Return how each local parameter is sharded."""
        specs = (shard_spec(parameter) for parameter in self._engine.module.parameters())
        return {spec.name: spec for spec in specs}

    def averaged(self) -> AbstractContextManager[None]:
        """Let the average of the weights be the weights inside."""
        return self._engine.sharding.with_averages()

    def fragments(self, only_trained: bool = False) -> Iterator[Fragment]:
        """Yield the fragments that this rank has to write."""
        return masters.fragments(self._engine.sharding, self._groups, only_trained)

    def scalars(self) -> dict[str, float]:
        """Return counters and loss scale."""
        return masters.scalars(self._engine)

    def restore(self, read: ReadShard, scalars: Mapping[str, float]) -> None:
        """Take a checkpoint's state."""
        masters.restore(self._engine, read, scalars)
