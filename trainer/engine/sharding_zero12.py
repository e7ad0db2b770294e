"""ZeRO-1 and 2: one flat partition of master weights and moments for each parameter group; weights are whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from deepspeed.runtime.utils import combine_grad_norm_groups
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from trainer.config.plan import RunPlan
from trainer.engine.deepspeed_surface import GROUP, DeepSpeedEngineSurface, FragmentAddress, PartitionedOptimizer
from trainer.engine.gate import StepGate, is_counted
from trainer.engine.sharding import Piece, Sharding, leave_skips_to_the_loop, share_masters
from trainer.engine.zero12_gradients import CompactOptimizer, FlatGradients
from trainer.tensor_parallel.gradients import GradientSink


def flat_pieces(groups: Sequence[Sequence[nn.Parameter]], partitions: Sequence[torch.Tensor]) -> Iterator[Piece]:
    """Yield the pieces in this rank's flat partitions."""
    for parameters, partition in zip(groups, partitions, strict=True):
        for parameter in parameters:
            # None: all of this parameter is in other ranks' partitions.
            mapping: Any = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                place: FragmentAddress = mapping.lp_fragment_address
                source: FragmentAddress = mapping.hp_fragment_address
                yield Piece(parameter, place.start, place.numel, partition, source.start)


class FlatPartitions(Sharding):
    """`DeepSpeedZeroOptimizer`."""

    def __init__(self, engine: DeepSpeedEngineSurface, plan: RunPlan) -> None:
        super().__init__(engine, plan)
        self._optimizer = cast(PartitionedOptimizer, engine.optimizer)

    @property
    def optimizer(self) -> PartitionedOptimizer:
        """Return DeepSpeed's optimizer."""
        return self._optimizer

    def groups(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each flat tensor."""
        return self.optimizer.bit16_groups

    def wrapped_pieces(self) -> Iterator[Piece]:
        """Yield the pieces in this rank's flat partitions."""
        return flat_pieces(self.groups(), self.optimizer.single_partition_of_fp32_groups)

    def stepped(self) -> Iterator[tuple[torch.Tensor, Sequence[nn.Parameter]]]:
        """Yield this rank's partition of each flat tensor."""
        return zip(self.optimizer.single_partition_of_fp32_groups, self.groups(), strict=True)

    def publish_masters(self) -> None:
        """Round the masters into this rank's partition, and gather the others'. Collective over the replicas."""
        self.optimizer.update_lp_params()

    def let_judge(self, gate: StepGate) -> None:
        """Put the gate after the norm of the whole gradient."""
        optimizer = self.optimizer
        optimizer.scaled_global_norm = lambda norm_type=2: gate.judge(self._global_norm(), self._unseen(gate))
        if optimizer.dtype != torch.float16:
            # Without this, bf16 applies updates that are not finite. The check of each gradient itself is only fp16's.
            optimizer.check_grad_overflow = True
            optimizer.check_overflow = lambda partition_gradients=True: None
        leave_skips_to_the_loop(optimizer)

    def _global_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient, -1 or infinite if it is not finite. Collective over the world.

        As DeepSpeed computes it, one group after the other; but a rank takes part for every group, also where it has
        none of its parameters: on a stage where those are frozen. By DeepSpeed's own the others would wait for ever.
        """
        optimizer, norms = self.optimizer, []
        places = {group[GROUP]: index for index, group in enumerate(self.basic_optimizer.param_groups)}
        for group in self.step_groups:
            index = places.get(group)
            parameters = [] if index is None else optimizer.params_in_partition[index]
            if optimizer.cpu_offload:
                norms.append(optimizer.complete_grad_norm_calculation_for_cpu_offload(parameters))
            else:
                gradients = () if index is None else optimizer.averaged_gradients[index]
                norms.append(optimizer.get_grad_norm_direct(gradients, parameters))
        whole: torch.Tensor = combine_grad_norm_groups(norms)
        return whole

    def _unseen(self, gate: StepGate) -> Iterator[torch.Tensor]:
        """Yield the gradients that the norm leaves out."""
        optimizer = self.optimizer
        for index, parameters in enumerate(optimizer.params_in_partition):
            gradients: list[torch.Tensor | None]
            if optimizer.cpu_offload:
                gradients = [optimizer.norm_for_param_grads.get(optimizer.get_param_id(p)) for p in parameters]
            else:
                averaged = optimizer.averaged_gradients[index] or ()
                gradients = [g for g in averaged if not getattr(g, "_zero_padding", False)]
            for parameter, gradient in zip(parameters, gradients, strict=False):
                if gradient is not None and not is_counted(parameter, gate.groups):
                    yield gradient

    def tied_gradient(self, weight: nn.Parameter) -> torch.Tensor | None:
        """Return the gradient, which is not in `weight.grad` if it accumulates in another dtype than the weight's."""
        return self.optimizer.get_param_gradient_attribute(weight)

    def forget_skipped(self) -> None:
        """Empty the buffer that the next step would add to: with CPU offload DeepSpeed does not empty it."""
        if self.optimizer.cpu_offload:
            for index in self.optimizer.averaged_gradients:
                self.optimizer.averaged_gradients[index] = None

    def hold_once(self) -> None:
        """Let fp32 master weights be the weights, and reduce fp32 gradients into the partition that is stepped with.

        DeepSpeed builds its optimizers by itself, so the object is given its class afterwards.
        """
        optimizer = self.optimizer
        groups = zip(optimizer.real_dp_process_group, optimizer.parallel_partitioned_bit16_groups, strict=True)
        own = [partitions[torch.distributed.get_rank(group)] for group, partitions in groups]
        if share_masters(zip(optimizer.single_partition_of_fp32_groups, own, strict=True)):
            # Every parameter holds a view of its part of the copy.
            optimizer._link_all_hp_params()
        if optimizer.cpu_offload:
            # Master weights go through a host buffer on their way to the weights: to round them, so fp32 needs none.
            buffers, masters = (
                optimizer.param_buffer_of_bit16_for_cpu_offload_groups,
                optimizer.single_partition_of_fp32_groups,
            )
            for index, (buffer, master) in enumerate(zip(buffers, masters, strict=True)):
                if buffer.dtype == master.dtype:
                    buffers[index] = master.detach()
        if type(optimizer) is DeepSpeedZeroOptimizer and not optimizer.cpu_offload and optimizer.dtype == torch.float32:
            is_flat = not optimizer.partition_gradients and optimizer.device == "cpu"
            optimizer.__class__ = FlatGradients if is_flat else CompactOptimizer
            if isinstance(optimizer, FlatGradients):
                optimizer.hold()

    def sink(self, weight: nn.Parameter) -> GradientSink:
        """Let layers add in place where all gradients are held until the last micro-batch."""
        return GradientSink.in_place if isinstance(self.optimizer, FlatGradients) else GradientSink.autograd
