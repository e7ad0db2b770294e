"""DeepSpeed's engines with the faults of DeepSpeed 0.19.8 repaired. Each repair has a test against the oracle.

- Tied embeddings: `_exec_reduce_tied_grads` reads `weight.grad`, but DeepSpeedZeroOptimizer with fp32 accumulation
  keeps gradients in `param.grad_accum`; the sum over the tied copies was skipped without a word and they drifted apart.
- fp32 with ZeRO-0: the norm left out replicated parameters of later stages, and was not reported.
- `_INSTRUCTION_MAP` holds function objects, so overriding a method is not enough: the map is rebuilt.
- A step that is not finite was applied or not depending on optimizer and precision: all ask the gate (`engine.gate`).
- With ZeRO-2 and CPU offload the gradients of a skipped step stayed, and every later step was skipped as well.
- DualPipeV finds the second half's buffers by the micro-batches of a training step, also in an evaluation of another
  number of them: one rank raised, the others waited for it for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.dualpipev import DualPipeVEngine
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch.distributed import get_process_group_ranks

from trainer.config.schema import OptimizerConfig, PipelineSchedule
from trainer.engine.deepspeed_surface import DeepSpeedEngineSurface, PipelineSurface
from trainer.engine.gate import StepGate
from trainer.engine.own_time import OwnTime
from trainer.engine.sharding import Sharding
from trainer.micro_batch import MicroBatch
from trainer.progress import Progress
from trainer.topology.dist_group import DistGroup
from trainer.topology.groups import ParallelGroups


class DrivenEngine(DeepSpeedEngineSurface, Protocol):
    """A repaired engine, as the faces of this room drive it."""

    sharding: Sharding
    gate: StepGate
    progress: Progress
    own_time: OwnTime
    busy_seconds: float

    def take_busy_seconds(self) -> float:
        """Return the seconds spent in forward and backward since the last call."""


class DrivenPipeline(DrivenEngine, PipelineSurface, Protocol):
    """A repaired pipeline engine."""

    def expect(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Take the micro-batches of the next schedule."""


class _Repaired:
    """Mixin before a DeepSpeed engine class: the gate, the parts a plain optimizer lacks, and time spent computing."""

    sharding: Sharding
    groups: ParallelGroups
    gate: StepGate
    progress: Progress
    busy_seconds: float = 0.0
    max_grad_norm: float = 0.0
    ema_decay: float | None = None

    def attach(
        self, sharding: Sharding, groups: ParallelGroups, optimizer: OptimizerConfig, progress: Progress
    ) -> None:
        """Hand over the objects that DeepSpeed's constructor has no argument for."""
        self.ema_decay = optimizer.ema_decay
        self.sharding = sharding
        self.groups = groups
        self.max_grad_norm = optimizer.grad_clip
        self.progress = progress
        self.cuda_spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.gate = StepGate(groups)
        sharding.optimizer.overflow = False
        sharding.let_judge(self.gate)

    def _take_model_step(self, lr_kwargs: dict[str, object] | None) -> None:
        self.sharding.before_step(self.max_grad_norm)
        optimizer = self.sharding.optimizer
        scaler = optimizer.loss_scaler if cast(DeepSpeedEngineSurface, self).fp16_enabled() else None
        before = dict(vars(scaler)) if scaler is not None else {}
        super()._take_model_step(lr_kwargs)  # type: ignore[misc]
        if self.ema_decay is not None and not optimizer.overflow:
            self.sharding.average(self.ema_decay)
        if optimizer.overflow:
            self.sharding.forget_skipped()
            if scaler is not None and self.gate.was_no_overflow():
                # That was no overflow, so it says nothing about the loss scale.
                vars(scaler).update(before)

    def buffered_allreduce_fallback(self, grads: Any = None, elements_per_buffer: int = 0) -> None:
        """Average gradients over replicas without ZeRO, in buckets of the config and not of 500M elements.

        Alone there is nothing to copy to a buffer and back.
        """
        engine: Any = self
        if self.groups.gradients.size > 1:
            super().buffered_allreduce_fallback(grads, engine.zero_reduce_bucket_size())  # type: ignore[misc]

    def take_busy_seconds(self) -> float:
        """Return the seconds spent in forward and backward since the last call. Syncs with the device."""
        if self.cuda_spans:
            self.cuda_spans[-1][1].synchronize()
            self.busy_seconds += sum(start.elapsed_time(end) for start, end in self.cuda_spans) / 1e3
            self.cuda_spans.clear()
        taken, self.busy_seconds = self.busy_seconds, 0.0
        return taken


class RepairedEngine(_Repaired, DeepSpeedEngine):  # type: ignore[misc]
    """The plain engine (PP = 1, ZeRO 0 to 3)."""


_PHASES = (0, 1)
"""Phases of a rank: DualPipeV's ranks hold two stages and have both, 1F1B's have only the first."""


class _RepairedPipeline(_Repaired):
    """The part that both pipeline engines share."""

    own_time: OwnTime
    _known_loss: torch.Tensor | None = None
    _due: Mapping[int, Iterator[MicroBatch]]

    def _take_model_step(self, lr_kwargs: dict[str, object] | None) -> None:
        with torch.no_grad():
            loss = self._aggregate_total_loss()
        self.gate.see_loss(loss)
        super()._take_model_step(lr_kwargs)
        self._known_loss = loss

    def _aggregate_total_loss(self) -> torch.Tensor:
        # `train_batch` asks once more at its end. Only there is an answer at hand.
        known, self._known_loss = self._known_loss, None
        loss: torch.Tensor = super()._aggregate_total_loss() if known is None else known  # type: ignore[misc]
        return loss

    def _exec_reduce_tied_grads(self) -> None:
        module: Any = cast(DeepSpeedEngineSurface, self).module
        for weight, group in module.get_tied_weights_and_groups():
            if not weight.requires_grad:
                continue
            grad = self.sharding.tied_gradient(weight)
            if grad is None:
                raise RuntimeError("a tied weight must have a gradient before its copies are summed, but has none")
            ranks = tuple(get_process_group_ranks(group))
            DistGroup(ranks.index(self.groups.rank), len(ranks), group, ranks).all_reduce(grad)

    def _timed(self, name: str, **kwargs: Any) -> None:
        base = getattr(super(), name)
        if self.groups.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            base(**kwargs)
            end.record()
            self.cuda_spans.append((start, end))
        else:
            begun = time.perf_counter()
            base(**kwargs)
            self.busy_seconds += time.perf_counter() - begun

    def expect(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Take the micro-batches of the next schedule: in order, each goes once through each phase of this rank."""
        self._due = {phase: iter(micro_batches) for phase in _PHASES}

    def _exec_forward_pass(self, **kwargs: Any) -> None:
        engine: Any = self
        engine.module.batch = next(self._due[kwargs.get("phase", 0)])
        with self.own_time.measured():
            self._timed("_exec_forward_pass", **kwargs)
        outputs = engine.pipe_buffers["outputs"][kwargs["buffer_id"]]
        if torch.is_grad_enabled() and torch.is_tensor(outputs) and not outputs.requires_grad:
            # A first stage whose parameters are all frozen. Its backward pass then ends where it begins.
            outputs.requires_grad_()

    def _exec_backward_pass(self, **kwargs: Any) -> None:
        self._timed("_exec_backward_pass", **kwargs)


def _noted(kind: type, run: Callable[..., None]) -> Callable[..., None]:
    def execute(self: _RepairedPipeline, **kwargs: Any) -> None:
        self.progress.execute(kind.__name__, kwargs.get("phase", 0))
        run(self, **kwargs)

    return execute


_REPAIRED_INSTRUCTIONS = {
    schedule.ReduceTiedGrads: _RepairedPipeline._exec_reduce_tied_grads,
    schedule.ForwardPass: _RepairedPipeline._exec_forward_pass,
    schedule.BackwardPass: _RepairedPipeline._exec_backward_pass,
}


def _instructions(theirs: dict[type, Callable[..., None]]) -> dict[type, Callable[..., None]]:
    """Return DeepSpeed's instructions with ours in place of some; each is noted before it runs."""
    return {kind: _noted(kind, run) for kind, run in {**theirs, **_REPAIRED_INSTRUCTIONS}.items()}


class RepairedPipelineEngine(_RepairedPipeline, PipelineEngine):  # type: ignore[misc]
    """1F1B."""

    _INSTRUCTION_MAP: ClassVar = _instructions(PipelineEngine._INSTRUCTION_MAP)


class RepairedDualPipeVEngine(_RepairedPipeline, DualPipeVEngine):  # type: ignore[misc]
    """DualPipeV."""

    _INSTRUCTION_MAP: ClassVar = _instructions(DualPipeVEngine._INSTRUCTION_MAP)
    _scheduled_micro_batches: int

    def _train_schedule(self) -> Any:
        engine: Any = self
        self._scheduled_micro_batches = engine.micro_batches
        return super()._train_schedule()

    def _inference_schedule(self, micro_batches: int) -> Any:
        self._scheduled_micro_batches = micro_batches
        return super()._inference_schedule(micro_batches)

    def _phase1_buffer(self, buffer_id: int) -> int:
        # DeepSpeed adds the number of micro-batches of a training step, even if an evaluation has another number of
        # them.
        return buffer_id + self._scheduled_micro_batches


PIPELINE_ENGINES: Mapping[PipelineSchedule, type[_RepairedPipeline]] = {
    PipelineSchedule.f1b1: RepairedPipelineEngine,
    PipelineSchedule.dualpipev: RepairedDualPipeVEngine,
}
"""Engine class for each schedule."""
