"""ZeRO-3: weights, master weights and moments are sharded parameter by parameter, and stepped in sub-groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from trainer.config.plan import RunPlan
from trainer.engine.deepspeed_surface import DeepSpeedEngineSurface, SubGroupOptimizer
from trainer.engine.gate import StepGate, is_counted
from trainer.engine.sharding import Piece, Sharding, leave_skips_to_the_loop, share_masters


class SubGroups(Sharding):
    """`DeepSpeedZeroOptimizer_Stage3`."""

    def __init__(self, engine: DeepSpeedEngineSurface, plan: RunPlan) -> None:
        super().__init__(engine, plan)
        self._optimizer = cast(SubGroupOptimizer, engine.optimizer)

    @property
    def optimizer(self) -> SubGroupOptimizer:
        """Return DeepSpeed's optimizer."""
        return self._optimizer

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each sub-group."""
        return self.optimizer.fp16_groups

    def wrapped_pieces(self) -> Iterator[Piece]:
        """Yield this rank's part of every trained parameter."""
        optimizer = self.optimizer
        for parameters, partition in zip(self.groups(), optimizer.fp32_partitioned_groups_flat, strict=True):
            for parameter in parameters:
                _, offset, width = optimizer.grad_position[optimizer.get_param_id(parameter)]
                yield from self._part(parameter, partition, offset, width)

    def stepped(self) -> Iterator[tuple[torch.Tensor, Sequence[nn.Parameter]]]:
        """Yield this rank's parts of each sub-group."""
        return zip(self.optimizer.fp32_partitioned_groups_flat, self.groups(), strict=True)

    def frozen_pieces(self, parameter: nn.Parameter) -> Iterator[Piece]:
        """Yield this rank's part of a frozen parameter: it is sharded like any other."""
        partition: torch.Tensor = cast(Any, parameter).ds_tensor
        return self._part(parameter, partition, 0, partition.numel())

    def _part(self, parameter: nn.Parameter, partition: torch.Tensor, offset: int, width: int) -> Iterator[Piece]:
        start = width * self.optimizer._get_param_partition_rank(parameter)
        # The last partitions are padded.
        numel = min(width, cast(Any, parameter).ds_numel - start)
        if numel > 0:
            yield Piece(parameter, start, numel, partition, offset)

    def publish_masters(self) -> None:
        """Round the masters into the partitions, and gather what is kept whole. Collective over the replicas."""
        optimizer = self.optimizer
        # What is whole already would stay as it is.
        optimizer._partition_all_parameters()
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        if optimizer.persistent_parameters:
            whole: Any = optimizer.persistent_parameters[0]
            whole.all_gather(optimizer.persistent_parameters)

    def let_judge(self, gate: StepGate) -> None:
        """Put the gate after the norms of the sub-groups."""
        computed: Callable[[], list[torch.Tensor]] = self.optimizer._get_norm_groups

        def judged() -> list[torch.Tensor]:
            norms = [torch.as_tensor(norm) for norm in computed()]
            worst = torch.stack([torch.where(norm >= 0, norm.float(), math.inf) for norm in norms]).max()
            verdict = gate.judge(worst, self._unseen(gate))
            return [torch.where(torch.isfinite(verdict), norms[0], math.inf), *norms[1:]]

        self.optimizer._get_norm_groups = judged
        leave_skips_to_the_loop(self.optimizer)

    def _unseen(self, gate: StepGate) -> Iterator[torch.Tensor]:
        """Yield the gradients that the norm leaves out."""
        optimizer = self.optimizer
        for index, parameters in enumerate(optimizer.fp16_groups):
            gradients: list[torch.Tensor | None]
            if optimizer.offload_optimizer:
                gradients = [optimizer.norm_for_param_grads.get(optimizer.get_param_id(p)) for p in parameters]
            else:
                gradients = list(optimizer.averaged_gradients[index])
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None and not is_counted(parameter, gate.groups):
                    yield gradient

    def hold_once(self) -> None:
        """Let fp32 master weights be the partitions that forward gathers from."""
        optimizer = self.optimizer
        if share_masters(
            zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True)
        ):
            # Every parameter holds a view of its part of the copy.
            optimizer._link_all_hp_params()

    def set_model_weight(self, parameter: nn.Parameter, weight: torch.Tensor) -> None:
        """Set the partition that forward gathers from, and the parameter itself if it is kept whole."""
        sharded: Any = parameter
        partition: torch.Tensor = sharded.ds_tensor
        start = partition.numel() * torch.distributed.get_rank(sharded.ds_process_group)
        numel = max(0, min(partition.numel(), weight.numel() - start))
        partition.data.view(-1)[:numel].copy_(weight.narrow(0, min(start, weight.numel()), numel))
        # A parameter that is not kept whole is empty.
        if parameter.numel() == weight.numel():
            super().set_model_weight(parameter, weight)
