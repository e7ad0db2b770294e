"""No ZeRO: every replica steps whole parameters with the optimizer that we built, without a wrapper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from trainer.config.plan import RunPlan
from trainer.engine.deepspeed_surface import DeepSpeedEngineSurface, WrappedOptimizer
from trainer.engine.gate import StepGate, is_counted
from trainer.engine.sharding import Piece, Sharding
from trainer.tensor_parallel.gradients import GradientSink
from trainer.topology.groups import ParallelGroups


def global_grad_norm(parameters: Iterable[nn.Parameter], groups: ParallelGroups) -> torch.Tensor:
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


class WithoutZero(Sharding):
    """Gradients, master weights and moments lie on the parameters. DeepSpeed neither clips nor judges: we do both."""

    def __init__(self, engine: DeepSpeedEngineSurface, plan: RunPlan) -> None:
        super().__init__(engine, plan)
        self._engine = engine
        self._gate: StepGate | None = None

    @property
    def optimizer(self) -> WrappedOptimizer:
        """Return the optimizer that we built."""
        return self._engine.optimizer

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the trained parameters."""
        return [[parameter for parameter in self._module.parameters() if parameter.requires_grad]]

    def wrapped_pieces(self) -> Iterator[Piece]:
        """Yield whole parameters."""
        for parameter in self.groups()[0]:
            yield Piece(parameter, 0, parameter.numel(), parameter, 0, is_on_every_replica=True)

    def stepped(self) -> Iterator[tuple[torch.Tensor, Sequence[nn.Parameter]]]:
        """Yield every parameter by itself."""
        return ((parameter, [parameter]) for parameter in self.groups()[0])

    def let_judge(self, gate: StepGate) -> None:
        """Keep the gate: `before_step` asks it."""
        self._gate = gate

    def before_step(self, max_grad_norm: float) -> None:
        """Clip, or leave the optimizer without gradients: it then does nothing. Syncs host and device.

        Collective over the world.
        """
        assert self._gate is not None
        groups, parameters = self._gate.groups, [p for p in self._module.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        unseen = (g for p, g in zip(parameters, gradients, strict=True) if not is_counted(p, groups))
        norm = self._gate.judge(global_grad_norm(parameters, groups), unseen)
        self.optimizer.overflow = not torch.isfinite(norm).item()
        self._engine._global_grad_norm = norm
        if self.optimizer.overflow:
            for parameter in parameters:
                parameter.grad = None
        elif max_grad_norm > 0 and gradients:
            scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale)

    def sink(self, weight: nn.Parameter) -> GradientSink:
        """Let layers add in place: nobody looks at a gradient before the step."""
        return GradientSink.in_place
