"""The gate that decides whether a step's update is applied: alike on all ranks, before the optimizer runs.

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

from trainer.engine.global_batch import loss_of
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
    """Holds the facts by which a step is judged.

    Args:
        groups: this rank's place.
    """

    def __init__(self, groups: ParallelGroups) -> None:
        self.groups = groups
        self._limit = math.inf
        self._loss: torch.Tensor | None = None
        self._counted: torch.Tensor = torch.ones(())
        self._was_asked = False

    def begin_step(self, loss_limit: float, counted: torch.Tensor) -> None:
        """Forget the last step. This one is refused by a loss above `loss_limit`, and if no token of it counts.

        Args:
            loss_limit: rounded to fp32.
            counted: tokens of the global batch, the sum of their weights [], the same on every rank.
        """
        self._limit, self._counted, self._loss, self._was_asked = loss_limit, counted, None, False

    def see_loss(self, loss: torch.Tensor) -> None:
        """Note the step's loss [], the same on every rank, before the optimizer is called."""
        self._loss = loss_of(loss.detach().float().reshape(()), self._counted)

    @property
    def loss(self) -> torch.Tensor:
        """The step's loss [] fp32; NaN, which is not finite, if no token counts."""
        assert self._loss is not None, "the loss must be known before it is asked for"
        return self._loss

    def is_empty(self) -> bool:
        """Return whether no token of the step counts. Syncs the host."""
        return not float(self._counted) > 0

    def judge(self, norm: torch.Tensor, unseen: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return the norm [], or infinity on every rank if the update must not be applied.

        Collective over the world (max-all-reduce of one number); no host sync.

        Args:
            norm: norm of the gradients; negative is DeepSpeed's mark of one that is not finite.
            unseen: gradients that `norm` leaves out.
        """
        self._was_asked = True
        device = self.loss.device
        others = list(unseen)
        good = torch.isfinite(norm).to(device) & (norm >= 0).to(device)
        good = good & torch.isfinite(self.loss) & (self.loss <= self._limit)
        if others:
            good = good & torch.isfinite(norm_of(others, device))
        bad = self.groups.world.all_reduce((~good).float().reshape(()), op="max").to(norm.device)
        return torch.where(bad > 0, torch.full_like(norm, math.inf), norm)

    def was_no_overflow(self) -> bool:
        """Return whether a step was refused for a loss beyond the limit, or since no token counts. Syncs the host."""
        if self._loss is None or not self._was_asked:
            return False
        if self.is_empty():
            return True
        return self._limit < float(self._loss) < math.inf
