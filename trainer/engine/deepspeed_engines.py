"""DeepSpeed's engines with what DeepSpeed 0.19.8 gets wrong put right. Each repair has a test against the oracle.

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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.dualpipev import DualPipeVEngine
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch.distributed import get_process_group_ranks

from trainer.config.schema import PipelineSchedule
from trainer.engine.gate import StepGate, forget_gradients, is_counted, put_in_the_way
from trainer.engine.own_time import OwnTime
from trainer.progress import Progress
from trainer.topology.groups import DistGroup, ParallelGroups


def global_grad_norm(parameters: Iterable[torch.nn.Parameter], groups: ParallelGroups) -> torch.Tensor:
    """Return the L2 norm over the whole model's gradients, each counted once. [] fp32.

    Collective over pipeline and tensor groups. Parameters that every tensor-parallel rank holds count on tp rank 0;
    copies of tied weights (`ds_pipe_replicated`) count on the first stage.
    """
    counted = [p.grad for p in parameters if p.grad is not None and is_counted(p, groups)]
    total = torch.zeros((), dtype=torch.float32, device=groups.device)
    if counted:
        total = torch.stack(torch._foreach_norm(counted, 2.0, torch.float32)).pow(2).sum()
    groups.tensor.all_reduce(total)
    groups.pipeline.all_reduce(total)
    return total.sqrt()


class _Repaired:
    """Mixin in front of a DeepSpeed engine class: the gate, true norm for plain optimizers, time spent computing."""

    groups: ParallelGroups
    gate: StepGate
    progress: Progress
    busy_seconds: float = 0.0
    max_grad_norm: float = 0.0

    def attach(self, groups: ParallelGroups, max_grad_norm: float, progress: Progress) -> None:
        """Hand over what DeepSpeed's constructor has no argument for."""
        self.groups = groups
        self.max_grad_norm = max_grad_norm
        self.progress = progress
        self.cuda_spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.gate = StepGate(groups)
        engine: Any = self
        engine.optimizer.overflow = False
        put_in_the_way(self.gate, engine.optimizer)

    def _take_model_step(self, lr_kwargs: dict[str, object] | None) -> None:
        engine: Any = self
        if not engine.zero_optimization():
            self._judge_plain_step()
        scaler = engine.optimizer.loss_scaler if engine.fp16_enabled() else None
        before = dict(vars(scaler)) if scaler is not None else {}
        super()._take_model_step(lr_kwargs)  # type: ignore[misc]
        if engine.optimizer.overflow:
            forget_gradients(engine.optimizer)
            if scaler is not None and self.gate.refused_for_loss():
                # That was no overflow, so it says nothing about the scale.
                vars(scaler).update(before)

    def _judge_plain_step(self) -> None:
        """Clip, or leave the plain optimizer without gradients: it then does nothing. Syncs host and device."""
        engine: Any = self
        parameters = [p for p in engine.module.parameters() if p.grad is not None]
        unseen = (p.grad for p in parameters if not is_counted(p, self.groups))
        norm = self.gate.judge(global_grad_norm(parameters, self.groups), unseen)
        engine.optimizer.overflow = not torch.isfinite(norm).item()
        engine._global_grad_norm = norm
        if engine.optimizer.overflow:
            for parameter in parameters:
                parameter.grad = None
        elif self.max_grad_norm > 0:
            scale = (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([p.grad for p in parameters], scale)

    def buffered_allreduce_fallback(self, *arguments: Any, **named: Any) -> None:
        """Average gradients over replicas without ZeRO; alone there is nothing to copy to a buffer and back."""
        if self.groups.data.size > 1:
            super().buffered_allreduce_fallback(*arguments, **named)  # type: ignore[misc]

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


class _RepairedPipeline(_Repaired):
    """What both pipeline engines share."""

    own_time: OwnTime
    _known_loss: torch.Tensor | None = None

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
        engine: Any = self
        optimizer = engine.optimizer
        for weight, group in engine.module.get_tied_weights_and_groups():
            if isinstance(optimizer, BF16_Optimizer):
                grad = weight._hp_grad
            elif engine.zero_optimization_stage() == ZeroStageEnum.optimizer_states:
                grad = optimizer.get_param_gradient_attribute(weight)
            else:
                grad = weight.grad
            if grad is None:
                raise RuntimeError("a tied weight must have a gradient before its copies are summed, but has none")
            ranks = tuple(get_process_group_ranks(group))
            DistGroup(group, ranks.index(self.groups.rank), len(ranks), ranks).all_reduce(grad)

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

    def _exec_forward_pass(self, **kwargs: Any) -> None:
        engine: Any = self
        # Present where the micro-batch was loaded on the last stage: the fused loss is one of its layers.
        engine.module.label_slot.labels = engine.pipe_buffers["labels"][kwargs["buffer_id"]]
        with self.own_time.measured():
            self._timed("_exec_forward_pass", **kwargs)

    def _exec_backward_pass(self, **kwargs: Any) -> None:
        self._timed("_exec_backward_pass", **kwargs)


def _noted(kind: type, run: Callable[..., None]) -> Callable[..., None]:
    def execute(self: _RepairedPipeline, **kwargs: object) -> None:
        self.progress.execute(kind.__name__)
        run(self, **kwargs)

    return execute


_REPAIRED_INSTRUCTIONS = {
    schedule.ReduceTiedGrads: _RepairedPipeline._exec_reduce_tied_grads,
    schedule.ForwardPass: _RepairedPipeline._exec_forward_pass,
    schedule.BackwardPass: _RepairedPipeline._exec_backward_pass,
}


def _instructions(theirs: dict[type, Callable[..., None]]) -> dict[type, Callable[..., None]]:
    """Return DeepSpeed's instructions with ours in place of some, each noted before it runs."""
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
        # DeepSpeed adds the micro-batches of a training step, also where an evaluation has another number of them.
        return buffer_id + self._scheduled_micro_batches


PIPELINE_ENGINES: Mapping[PipelineSchedule, type[_RepairedPipeline]] = {
    PipelineSchedule.f1b1: RepairedPipelineEngine,
    PipelineSchedule.dualpipev: RepairedDualPipeVEngine,
}
"""What runs each schedule."""
