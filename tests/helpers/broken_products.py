"""Products with one fault each, made by patching this process before ranks are forked from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.dualpipev import DualPipeVEngine

import trainer.model.norm
from trainer.config.schema import PipelineSchedule
from trainer.engine.deepspeed_engines import RepairedEngine, RepairedPipelineEngine
from trainer.engine.optimizer import set_learning_rate
from trainer.engine.zero12_gradients import CompactOptimizer
from trainer.proving.proof_trials import Setting
from trainer.tensor_parallel import linear as linear_module
from trainer.tensor_parallel.linear import RowParallelLinear
from trainer.tensor_parallel.mappings import leave_tensor_parallel

Patch = pytest.MonkeyPatch


def _twice(value: Any) -> None:
    for one in value if isinstance(value, list | tuple) else [value]:
        if torch.is_tensor(one):
            one.detach().mul_(2)


def gradient_scaled_on_a_stage(patch: Patch) -> None:
    """Every stage but the last gets a gradient that is twice too large."""
    receive = RepairedPipelineEngine._INSTRUCTION_MAP[schedule.RecvGrad]

    def broken(self: Any, **kwargs: Any) -> None:
        receive(self, **kwargs)
        _twice(self.grad_layer)

    patch.setitem(RepairedPipelineEngine._INSTRUCTION_MAP, schedule.RecvGrad, broken)


def bias_on_every_tensor_rank(patch: Patch) -> None:
    """The sum over tensor-parallel ranks holds a row-parallel bias once for each of them."""
    whole = RowParallelLinear.forward

    def broken(self: Any, hidden: torch.Tensor, local: bool = False) -> torch.Tensor:
        if local or self.group.size == 1:
            return whole(self, hidden, local)
        output = linear_module.linear(hidden, self.weight, self.bias)
        return leave_tensor_parallel(output, self.group, self.sequence_parallel)

    patch.setattr(RowParallelLinear, "forward", broken)


def tied_weights_untied(patch: Patch) -> None:
    """The gradients of the copies of a tied weight are not summed."""
    patch.setitem(RepairedPipelineEngine._INSTRUCTION_MAP, schedule.ReduceTiedGrads, lambda self, **kwargs: None)


def replicas_not_averaged(patch: Patch) -> None:
    """Without ZeRO every replica steps by its own gradient."""
    patch.setattr(RepairedEngine, "buffered_allreduce_fallback", lambda self, *args, **kwargs: None)


def zero_averages_twice(patch: Patch) -> None:
    """ZeRO-1 and 2 divide gradients by the number of replicas once more."""
    average = CompactOptimizer.average_tensor

    def broken(self: Any, tensor: torch.Tensor, communication_data_type: torch.dtype) -> None:
        tensor.div_(2)
        average(self, tensor, communication_data_type)

    patch.setattr(CompactOptimizer, "average_tensor", broken)


def accumulation_scaled_twice(patch: Patch) -> None:
    """The loss of each micro-batch is divided by their number once more, as in DeepSpeed #8152."""
    backward = RepairedEngine.backward

    def broken(self: Any, loss: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return backward(self, loss / self.gradient_accumulation_steps(), *args, **kwargs)

    patch.setattr(RepairedEngine, "backward", broken)


def norms_of_parts_of_the_sequence(patch: Patch) -> None:
    """With sequence parallelism each rank keeps its own part of the gradients of norms."""
    patch.setattr(trainer.model.norm, "complete_gradient", lambda parameter, group: parameter)


def folded_schedule_scales(patch: Patch) -> None:
    """DualPipeV hands on gradients that are twice too large."""
    backward = DualPipeVEngine._exec_backward_pass

    def broken(self: Any, buffer_id: int, phase: int) -> None:
        _twice(self.pipe_buffers["grads"][buffer_id])
        backward(self, buffer_id, phase)

    patch.setattr(DualPipeVEngine, "_exec_backward_pass", broken)


def optimizer_steps_too_far(patch: Patch) -> None:
    """Every layout steps with a learning rate that is too large."""

    def broken(groups: Any, rate: float) -> None:
        set_learning_rate(groups, 1.1 * rate)

    patch.setattr("trainer.engine.wrapped.set_learning_rate", broken)


@dataclass(frozen=True)
class Broken:
    """A fault, and the words for a run that has it."""

    fault: Callable[[Patch], None]
    words: tuple[str, ...]
    """Words of a run of two ranks that has it."""
    settings: tuple[Setting, ...]
    """Trials of one or two ranks that tell which axis it is."""
    axis: str
    """Axis that must be named."""
    tensor: str
    """Part of the name of a tensor that must be named."""

    ranks_axis: str = ""
    """Axis that the self-test must name, where its ranks cannot tell."""

    @property
    def name(self) -> str:
        """Name of the test."""
        return self.fault.__name__


_PLAIN, _MANY = Setting(), Setting(micro_batches=4)
_PIPELINE, _ONE = Setting(pp=2, micro_batches=4), Setting(pp=2)
_UNTIED, _TENSOR, _DATA = Setting(pp=2, micro_batches=4, untied=True), Setting(tp=2), Setting(dp=2)
BROKEN = (
    Broken(gradient_scaled_on_a_stage, ("layout=pp2",), (_ONE, _PIPELINE, _UNTIED, _DATA), "pipeline", "blocks.0."),
    Broken(bias_on_every_tensor_rank, ("layout=tp2",), (_TENSOR, _ONE, _DATA), "tensor", ".bias"),
    Broken(tied_weights_untied, ("layout=pp2",), (_PIPELINE, _UNTIED, _DATA), "tied embeddings", "embedding.weight"),
    Broken(replicas_not_averaged, ("layout=dp2", "zero=stage0"), (_PLAIN, _DATA, _TENSOR), "data", "blocks.0."),
    Broken(
        zero_averages_twice,
        ("layout=dp2", "zero=stage2"),
        (_DATA, Setting(dp=2, micro_batches=2, zero_stage=2), Setting(dp=2, micro_batches=2)),
        "ZeRO",
        "blocks.",
    ),
    Broken(accumulation_scaled_twice, ("layout=dp2", "zero=stage0"), (_PLAIN, _MANY, _DATA), "accumulation", "blocks."),
    Broken(
        norms_of_parts_of_the_sequence,
        ("layout=tp2_sp",),
        (_TENSOR, Setting(tp=2, sequence_parallel=True)),
        "sequence",
        "norm",
    ),
    Broken(
        folded_schedule_scales,
        ("layout=pp2_dualpipev",),
        (_PIPELINE, Setting(pp=2, micro_batches=4, schedule=PipelineSchedule.dualpipev)),
        "schedule",
        "blocks.",
    ),
    Broken(
        optimizer_steps_too_far,
        ("layout=dp2",),
        (_PLAIN, _DATA),
        "one process alone",
        "blocks.",
        "every layout of these ranks",
    ),
)
