"""DeepSpeed's bf16 optimizer: ZeRO-1 whose gradients add up in fp32, in a buffer as large as the model's shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from trainer.config.plan import RunPlan
from trainer.engine.deepspeed_surface import Bf16Optimizer, DeepSpeedEngineSurface
from trainer.engine.gate import StepGate, is_counted, norm_of
from trainer.engine.sharding import Piece, Sharding, leave_skips_to_the_loop
from trainer.engine.sharding_zero12 import flat_pieces


class Bf16Partitions(Sharding):
    """`BF16_Optimizer`."""

    def __init__(self, engine: DeepSpeedEngineSurface, plan: RunPlan) -> None:
        super().__init__(engine, plan)
        self._optimizer = cast(Bf16Optimizer, engine.optimizer)

    @property
    def optimizer(self) -> Bf16Optimizer:
        """Return DeepSpeed's optimizer."""
        return self._optimizer

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each flat tensor."""
        return self.optimizer.bf16_groups

    def wrapped_pieces(self) -> Iterator[Piece]:
        """Yield the pieces in this rank's flat partitions."""
        return flat_pieces(self.groups(), self.optimizer.fp32_groups_flat_partition)

    def stepped(self) -> Iterator[tuple[torch.Tensor, Sequence[nn.Parameter]]]:
        """Yield this rank's partition of each flat tensor."""
        return zip(self.optimizer.fp32_groups_flat_partition, self.groups(), strict=True)

    def publish_masters(self) -> None:
        """Round the masters into this rank's partition, and gather the others'. Collective over the replicas."""
        self.optimizer.update_lp_params()

    def let_judge(self, gate: StepGate) -> None:
        """Put the gate at the place where the optimizer collects the gradients of its norm.

        Its step offers no place after the norm, so it gets this rank's part of it: the norm of a norm is the norm.
        """
        optimizer = self.optimizer
        computed: Callable[..., object] = optimizer.get_grads_for_norm

        def judged(for_clipping: bool = False) -> object:
            if for_clipping:
                return computed(for_clipping=True)
            held: dict[bool, list[torch.Tensor]] = {True: [], False: []}
            buffers = (optimizer.bf16_groups, optimizer.fp32_groups_gradients, optimizer.fp32_groups_has_gradients)
            for parameters, gradients, present in zip(*buffers, strict=True):
                for parameter, gradient, is_present in zip(parameters, gradients, present, strict=True):
                    if is_present:
                        held[is_counted(parameter, gate.groups)].append(gradient)
            return [gate.judge(norm_of(held[True], gate.groups.device), held[False])], {}

        optimizer.get_grads_for_norm = judged
        leave_skips_to_the_loop(optimizer)

    def tied_gradient(self, weight: nn.Parameter) -> torch.Tensor | None:
        """Return the fp32 sum over the micro-batches."""
        gradient: torch.Tensor | None = cast(Any, weight)._hp_grad
        return gradient
