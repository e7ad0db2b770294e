"""DeepSpeed's ways of keeping an optimizer's state, with one face for a step, a checkpoint and a layer.

DeepSpeed wraps AdamW in one of several classes, by ZeRO stage and precision. Each of them computes its gradient norm,
keeps gradients and master weights, and drops a skipped step in a way of its own. Here each is one class, in a file of
its own (`sharding_without_zero`, `sharding_zero12`, `sharding_zero3`, `sharding_bf16`); `sharding_of` finds an
engine's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from trainer.config.plan import RunPlan
from trainer.engine.deepspeed_surface import BasicOptimizer, DeepSpeedEngineSurface, WrappedOptimizer
from trainer.engine.gate import StepGate
from trainer.tensor_parallel.gradients import GradientSink
from trainer.tensor_parallel.init import tensor_spec


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of one parameter's tensor-parallel shard, as this rank keeps them."""

    parameter: nn.Parameter
    start: int
    """Place of the piece in the flattened shard."""
    numel: int
    master: torch.Tensor
    """Tensor that holds the fp32 master weights. If they are stepped, the inner optimizer files its state under it."""
    offset: int
    """Place of the piece in the flattened master."""
    is_on_every_replica: bool = False
    """True if all data-parallel ranks keep the same piece."""

    def elements(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the piece's elements, a view, of the master or of a state tensor of its shape."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


class Sharding(ABC):
    """One way in which DeepSpeed keeps an optimizer. Every method is local unless it says otherwise.

    Args:
        engine: DeepSpeed's engine, built.
        plan: numbers of the run.
    """

    def __init__(self, engine: DeepSpeedEngineSurface, plan: RunPlan) -> None:
        self._module = engine.module
        self.basic_optimizer: BasicOptimizer = engine.basic_optimizer
        self.stepping = plan.stepping
        self.step_groups = plan.step_groups
        self.averages: dict[torch.Tensor, torch.Tensor] = {}
        """Tensor that is stepped -> average of the weights in it; empty if none is kept."""

    def begin_averages(self) -> None:
        """Keep an average of the weights beside what the optimizer steps, beginning as the weights. Called once."""
        for master, _ in self.stepped() if self.stepping.averages else ():
            self.averages[master] = master.detach().clone()

    def average(self, decay: float) -> None:
        """Move the average towards the weights of a step that was applied. Local; no host sync."""
        for master, average in self.averages.items():
            average.lerp_(master.detach(), 1 - decay)

    @contextmanager
    def with_averages(self) -> Iterator[None]:
        """Let the average be the weights inside, and the weights be bit for bit what they were afterwards.

        Collective over the replicas on the way in and out.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for master, average in self.averages.items():
            before = master.detach().clone()
            master.data.copy_(average)
            average.copy_(before)
        self.publish_masters()

    def publish_masters(self) -> None:  # noqa: B027
        """Make the weights that forward reads those of the masters. Collective over the replicas."""

    def kinds(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """Return the kinds of tensors that are kept of a parameter."""
        return self.stepping.kinds(tensor_spec(parameter), parameter.requires_grad)

    @property
    @abstractmethod
    def optimizer(self) -> WrappedOptimizer:
        """Return DeepSpeed's optimizer."""

    @abstractmethod
    def wrapped_pieces(self) -> Iterator[Piece]:
        """Yield the pieces that DeepSpeed's optimizer holds on this rank, sharded as it shards them."""

    def pieces(self) -> Iterator[Piece]:
        """Yield this rank's pieces of every parameter: over all ranks, every element at least once."""
        held = {id(parameter) for group in self.groups() for parameter in group}
        yield from self.wrapped_pieces()
        for parameter in self._module.parameters():
            if id(parameter) not in held:
                yield from self.frozen_pieces(parameter)

    @abstractmethod
    def stepped(self) -> Iterator[tuple[torch.Tensor, Sequence[nn.Parameter]]]:
        """Yield the tensors that the inner optimizer steps, with the parameters that all replicas hold in each."""

    @abstractmethod
    def groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters that DeepSpeed's optimizer holds over all replicas, group by group."""

    def frozen_pieces(self, parameter: nn.Parameter) -> Iterator[Piece]:
        """Yield this rank's pieces of a parameter that no optimizer holds: all of it, unless it is sharded."""
        yield Piece(parameter, 0, parameter.numel(), parameter, 0, is_on_every_replica=True)

    @abstractmethod
    def let_judge(self, gate: StepGate) -> None:
        """Let every gradient norm that decides whether a step is applied pass through the gate."""

    def before_step(self, max_grad_norm: float) -> None:  # noqa: B027
        """Do the work that this optimizer leaves out before it steps. Collective over the world; may sync.

        Args:
            max_grad_norm: norm to clip to; 0: no clipping.
        """

    def tied_gradient(self, weight: nn.Parameter) -> torch.Tensor | None:
        """Return the tensor that holds the gradient of a tied weight before it is averaged over replicas."""
        return weight.grad

    def forget_skipped(self) -> None:  # noqa: B027
        """Drop the gradients that DeepSpeed keeps of a skipped step."""

    def sink(self, weight: nn.Parameter) -> GradientSink:
        """Return the place to which the layer of `weight` must add its gradient.

        ZeRO's optimizers have to be told of every gradient: they shard or reduce it as soon as it exists.
        """
        return GradientSink.autograd

    def hold_once(self) -> None:  # noqa: B027
        """Free the tensors that DeepSpeed holds twice. Called once, after it was built."""

    def set_model_weight(self, parameter: nn.Parameter, weight: torch.Tensor) -> None:
        """Set the weight that forward reads to a whole shard, [numel] fp32; works on every rank."""
        parameter.data.view(-1).copy_(weight)


def leave_skips_to_the_loop(optimizer: WrappedOptimizer) -> None:
    """Never raise at the smallest loss scale: the loop decides how often a step may be skipped."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        optimizer.loss_scaler.raise_error_at_min_scale = False


def share_masters(pairs: Iterator[tuple[torch.Tensor, torch.Tensor | None]]) -> bool:
    """Make fp32 master weights the model's weights themselves instead of a copy; return whether any are.

    In fp32 the partition that the optimizer steps and the one that forward reads hold the same numbers. DeepSpeed means
    to share them with ZeRO-3, but compares a `torch.device` with its name, which is never equal; with ZeRO-1 and 2 it
    always copies. Its copy after the step then has nothing to do.
    """
    any_shared = False
    for master, weights in pairs:
        if weights is not None and master.dtype == weights.dtype and master.device == weights.device:
            master.data = weights.data
            any_shared = True
    return any_shared
