"""Whether a step's update is applied: decided alike on all ranks, before the optimizer touches anything.

Each of DeepSpeed's optimizers drops a step whose gradient norm is not finite, as fp16 needs it; but bf16 with ZeRO-2
or offload is not asked, parameters that the norm leaves out (copies of tied weights; what tensor-parallel ranks hold
alike, on all but the first) are not looked at, and where data-parallel ranks compute the norm each for itself nothing
makes them agree. So the norm passes through here on its way: it comes out infinite on every rank if anything is wrong
on any; `Sharding.let_judge` puts it in the way of each optimizer. The price is one max-all-reduce of a number over the
world; the host reads what DeepSpeed reads anyway (bf16 with ZeRO-2 or offload, and fp32 without ZeRO, did not read it
before).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from trainer.topology.groups import ParallelGroups


def is_counted(parameter: torch.nn.Parameter, groups: ParallelGroups) -> bool:
    """Return whether this rank's gradient of a parameter goes into the global norm, which counts each element once."""
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return bool(getattr(parameter, "tensor_model_parallel", False)) or groups.tensor.rank == 0


def norm_of(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return the L2 norm of all of them, [] fp32: the squares of a half-precision norm would overflow."""
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
            good = good & torch.isfinite(norm_of(others, device))
        bad = self.groups.world.all_reduce((~good).float().reshape(()), op="max").to(norm.device)
        return torch.where(bad > 0, torch.full_like(norm, math.inf), norm)

    def refused_for_loss(self) -> bool:
        """Return whether the step was refused because of a finite loss beyond the limit. Syncs if a limit is set."""
        if self._loss is None or not self._was_asked or self._limit == math.inf:
            return False
        return self._limit < float(self._loss) < math.inf
