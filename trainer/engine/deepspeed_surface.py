"""The part of DeepSpeed's objects that the project uses, typed in one place. DeepSpeed itself carries no types.

A name that begins with an underscore, or that belongs to a flat buffer, is used in one class of `sharding_*` only: see
ADR 0015. Checked against DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Protocol

import torch
from torch import nn

GROUP = "group"
"""Key of a parameter group that we add: the `StepGroup` of its parameters."""
State = MutableMapping[str, torch.Tensor | int]


class BasicOptimizer(Protocol):
    """The optimizer as we build it: torch's AdamW, DeepSpeed's for the CPU, or one of our own."""

    param_groups: list[dict[str, object]]
    state: MutableMapping[torch.Tensor, State]


class LossScaler(Protocol):
    """The dynamic loss scale of fp16."""

    cur_scale: float
    raise_error_at_min_scale: bool


class WrappedOptimizer(Protocol):
    """The interface that every optimizer of an engine has."""

    overflow: bool
    """True if the last step was skipped."""
    cur_scale: float
    loss_scaler: LossScaler


class FragmentAddress(Protocol):
    """Consecutive elements of a flat tensor."""

    start: int
    numel: int


class PartitionedOptimizer(WrappedOptimizer, Protocol):
    """`DeepSpeedZeroOptimizer`: ZeRO-1 and 2."""

    dtype: torch.dtype
    device: torch.device | str
    cpu_offload: bool
    partition_gradients: bool
    check_grad_overflow: bool
    bit16_groups: list[list[nn.Parameter]]
    params_in_partition: list[list[nn.Parameter]]
    parallel_partitioned_bit16_groups: list[list[torch.Tensor]]
    single_partition_of_fp32_groups: list[torch.Tensor]
    param_buffer_of_bit16_for_cpu_offload_groups: list[torch.Tensor]
    real_dp_process_group: list[torch.distributed.ProcessGroup]
    averaged_gradients: MutableMapping[int, Sequence[torch.Tensor] | None]
    norm_for_param_grads: MutableMapping[int, torch.Tensor]
    scaled_global_norm: Callable[..., torch.Tensor]
    check_overflow: Callable[..., None]

    update_lp_params: Callable[[], None]
    get_param_id: Callable[[nn.Parameter], int]
    get_grad_norm_direct: Callable[..., torch.Tensor]
    complete_grad_norm_calculation_for_cpu_offload: Callable[[list[nn.Parameter]], torch.Tensor]
    get_param_gradient_attribute: Callable[[nn.Parameter], torch.Tensor | None]
    _link_all_hp_params: Callable[[], None]


class SubGroupOptimizer(WrappedOptimizer, Protocol):
    """`DeepSpeedZeroOptimizer_Stage3`."""

    offload_optimizer: bool
    fp16_groups: list[list[nn.Parameter]]
    fp16_partitioned_groups_flat: list[torch.Tensor | None]
    fp32_partitioned_groups_flat: list[torch.Tensor]
    averaged_gradients: MutableMapping[int, Sequence[torch.Tensor]]
    norm_for_param_grads: MutableMapping[int, torch.Tensor]
    grad_position: MutableMapping[int, tuple[int, int, int]]
    """Parameter -> (group, offset in the flat partition, elements)."""
    persistent_parameters: list[nn.Parameter]
    _get_norm_groups: Callable[[], list[torch.Tensor]]

    _partition_all_parameters: Callable[[], None]
    _reassign_or_swap_out_partitioned_parameters: Callable[[int], None]
    get_param_id: Callable[[nn.Parameter], int]
    _get_param_partition_rank: Callable[[nn.Parameter], int]
    _link_all_hp_params: Callable[[], None]


class Bf16Optimizer(WrappedOptimizer, Protocol):
    """`BF16_Optimizer`: ZeRO-1 of bf16 weights whose gradients add up in fp32."""

    bf16_groups: list[list[nn.Parameter]]
    fp32_groups_flat_partition: list[torch.Tensor]
    fp32_groups_gradients: list[list[torch.Tensor]]
    fp32_groups_has_gradients: list[list[bool]]
    get_grads_for_norm: Callable[..., object]
    update_lp_params: Callable[[], None]


class DeepSpeedEngineSurface(Protocol):
    """`DeepSpeedEngine` and its pipeline engines."""

    module: nn.Module
    optimizer: WrappedOptimizer
    basic_optimizer: BasicOptimizer
    skipped_steps: int
    global_steps: int
    micro_steps: int
    """Micro-batches since the start, by which the plain engine finds the last one of a step."""
    _global_grad_norm: torch.Tensor | float | None

    backward: Callable[[torch.Tensor], object]
    step: Callable[[], None]
    train: Callable[[], object]
    eval: Callable[[], object]
    fp16_enabled: Callable[[], bool]
    gradient_accumulation_steps: Callable[[], int]
    set_train_batch_size: Callable[[int], None]
    get_global_grad_norm: Callable[[], torch.Tensor | float | None]

    def __call__(self, *inputs: object) -> torch.Tensor:
        """Run the module forward."""


class PipelineSurface(DeepSpeedEngineSurface, Protocol):
    """`PipelineEngine` and `DualPipeVEngine`."""

    train_batch: Callable[[Iterator[object]], torch.Tensor]

    def eval_batch(self, data_iter: Iterator[object], num_micro_batches: int) -> torch.Tensor | float:
        """Run the forward-only schedule."""

    def reset_activation_shape(self) -> None:
        """Forget the shape of the tensors between stages: the stages then tell each other anew."""
