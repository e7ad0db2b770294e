"""Whether a step's update is applied: decided alike on all ranks, before the optimizer touches anything.

Each of DeepSpeed's optimizers drops a step whose gradient norm is not finite, as fp16 needs it; but bf16 with ZeRO-2
or offload is not asked, parameters that the norm leaves out (copies of tied weights; what tensor-parallel ranks hold
alike, on all but the first) are not looked at, and where data-parallel ranks compute the norm each for itself nothing
makes them agree. So the norm passes through here on its way: it comes out infinite on every rank if anything is wrong
on any. The price is one max-all-reduce of a number over the world; the host reads what DeepSpeed reads anyway (bf16
with ZeRO-2 or offload, and fp32 without ZeRO, did not read it before).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from trainer.topology.groups import ParallelGroups


def is_counted(parameter: torch.nn.Parameter, groups: ParallelGroups) -> bool:
    """Return whether this rank's gradient of a parameter goes into the global norm, which counts each element once."""
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return bool(getattr(parameter, "tensor_model_parallel", False)) or groups.tensor.rank == 0


def _norm(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    # In fp32: the squares of a half-precision norm would overflow.
    norm = torch.nn.utils.get_total_norm([tensor.detach().float() for tensor in tensors])
    return norm.to(device=device, dtype=torch.float32)


class StepGate:
    """Holds what a step is judged by.

    Args:
        groups: this rank's place.
    """

    def __init__(self, groups: ParallelGroups) -> None:
        self.groups = groups
        self._limit = math.inf
        self._loss: torch.Tensor | None = None
        self._was_asked = False

    def begin_step(self, loss_limit: float) -> None:
        """Forget the last step. A loss above `loss_limit` will refuse this one."""
        self._limit, self._loss, self._was_asked = loss_limit, None, False

    def see_loss(self, loss: torch.Tensor) -> None:
        """Take the step's mean loss [], the same on every rank, before the optimizer is called."""
        self._loss = loss.detach().float().reshape(())

    def judge(self, norm: torch.Tensor, unseen: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm [], or infinity on every rank if the update must not be applied.

        Collective over the world (max-all-reduce of one number); no host sync.

        Args:
            norm: of the gradients; negative is DeepSpeed's mark of one that is not finite.
            unseen: gradients that `norm` leaves out.
        """
        assert self._loss is not None, "the loss must be known before the optimizer is called"
        self._was_asked = True
        device = self._loss.device
        others = list(unseen)
        good = torch.isfinite(norm).to(device) & (norm >= 0).to(device)
        good = good & torch.isfinite(self._loss) & (self._loss <= self._limit)
        if others:
            good = good & torch.isfinite(_norm(others, device))
        bad = self.groups.world.all_reduce((~good).float().reshape(()), op="max").to(norm.device)
        return torch.where(bad > 0, torch.full_like(norm, math.inf), norm)

    def refused_for_loss(self) -> bool:
        """Return whether the step was refused because of a finite loss beyond the limit. Syncs if a limit is set."""
        if self._loss is None or not self._was_asked or self._limit == math.inf:
            return False
        return self._limit < float(self._loss) < math.inf


def put_in_the_way(gate: StepGate, optimizer: Any) -> None:
    """Let every norm that DeepSpeed's optimizer computes in its step pass through the gate.

    The plain optimizer of ZeRO-0 has no norm of its own: the engine asks the gate itself.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        _stage3(gate, optimizer)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        _stage_1_and_2(gate, optimizer)
    elif isinstance(optimizer, BF16_Optimizer):
        _bf16(gate, optimizer)
    scaler: Any = getattr(optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        # How often a step may be skipped is the loop's to say.
        scaler.raise_error_at_min_scale = False


def forget_gradients(optimizer: Any) -> None:
    """Drop what DeepSpeed keeps of a skipped step: with ZeRO-2 and CPU offload the next step would add to it."""
    if isinstance(optimizer, DeepSpeedZeroOptimizer) and optimizer.cpu_offload:
        for index in optimizer.averaged_gradients:
            optimizer.averaged_gradients[index] = None


def _stage_1_and_2(gate: StepGate, optimizer: Any) -> None:
    computed: Callable[..., torch.Tensor] = optimizer.scaled_global_norm

    def unseen() -> Iterator[torch.Tensor]:
        for index, parameters in enumerate(optimizer.params_in_partition):
            if optimizer.cpu_offload:
                norms = optimizer.norm_for_param_grads
                pairs = [(p, norms.get(optimizer.get_param_id(p))) for p in parameters]
            else:
                real = (g for g in optimizer.averaged_gradients[index] if not getattr(g, "_zero_padding", False))
                pairs = list(zip(parameters, real, strict=False))
            yield from (grad for p, grad in pairs if grad is not None and not is_counted(p, gate.groups))

    optimizer.scaled_global_norm = lambda norm_type=2: gate.judge(computed(norm_type), unseen())
    if optimizer.dtype != torch.float16:
        # Without this, bf16 applies what is not finite. The check of each gradient itself is fp16's alone.
        optimizer.check_grad_overflow = True
        optimizer.check_overflow = lambda partition_gradients=True: None


def _stage3(gate: StepGate, optimizer: Any) -> None:
    computed: Callable[[], list[torch.Tensor]] = optimizer._get_norm_groups

    def unseen() -> Iterator[torch.Tensor]:
        for index, parameters in enumerate(optimizer.fp16_groups):
            if optimizer.offload_optimizer:
                norms = optimizer.norm_for_param_grads
                pairs = [(p, norms.get(optimizer.get_param_id(p))) for p in parameters]
            else:
                pairs = list(zip(parameters, optimizer.averaged_gradients[index], strict=False))
            yield from (grad for p, grad in pairs if grad is not None and not is_counted(p, gate.groups))

    def judged() -> list[torch.Tensor]:
        norms = [torch.as_tensor(norm) for norm in computed()]
        worst = torch.stack([torch.where(norm >= 0, norm.float(), math.inf) for norm in norms]).max()
        verdict = gate.judge(worst, unseen())
        return [torch.where(torch.isfinite(verdict), norms[0], math.inf), *norms[1:]]

    optimizer._get_norm_groups = judged


def _bf16(gate: StepGate, optimizer: Any) -> None:
    computed: Callable[..., Any] = optimizer.get_grads_for_norm

    def judged(for_clipping: bool = False) -> Any:
        if for_clipping:
            return computed(for_clipping=True)
        held: dict[bool, list[torch.Tensor]] = {True: [], False: []}
        buffers = (optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients)
        for parameters, gradients, present in zip(*buffers, strict=True):
            for parameter, gradient, is_present in zip(parameters, gradients, present, strict=True):
                if is_present:
                    held[is_counted(parameter, gate.groups)].append(gradient)
        # Its step offers no place after the norm, so it gets this rank's part of it: the norm of a norm is the norm.
        return [gate.judge(_norm(held[True], gate.groups.device), held[False])], {}

    optimizer.get_grads_for_norm = judged
