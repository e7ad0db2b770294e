"""Memory that DeepSpeed's ZeRO holds twice, given back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import Init
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn


class _Partitions(Init):  # type: ignore[misc]
    """DeepSpeed's conversion of a parameter into a partition, of parameters that are alike on all ranks."""

    def _zero_init_param(self, param: Any) -> None:
        # DeepSpeed broadcasts the first rank's values before; ours come from one source.
        self._convert_to_deepspeed_param(param)
        param.partition()


class Partitioning:
    """Cuts one parameter after the other over the data-parallel ranks, as ZeRO-3 holds them. Local.

    DeepSpeed cuts a model that is there, or patches the constructors of all modules and tensors so that nothing is ever
    whole. Here layers are built without memory, so that neither is needed.

    Args:
        settings: DeepSpeed's config.
        mpu: tells the data-parallel ranks.
        dtype: of the parameters.
    """

    def __init__(self, settings: dict[str, object], mpu: Any, dtype: torch.dtype) -> None:
        self._settings, self._mpu, self._dtype = settings, mpu, dtype
        self._convert: Callable[[list[nn.Parameter]], None] | None = None

    def __call__(self, parameter: nn.Parameter) -> None:
        """Keep this rank's partition of a parameter, and nothing else of it."""
        if self._convert is not None:
            self._convert([parameter])
            return
        group = self._mpu.get_data_parallel_group()
        first = nn.ParameterList([parameter])
        _Partitions(first, group, dtype=self._dtype, config_dict_or_path=self._settings, mpu=self._mpu)
        converted: Any = parameter
        self._convert = converted.convert_to_zero_parameters


def share_masters(optimizer: Any) -> None:
    """Let fp32 masters be the weights themselves, instead of a copy of them. Local.

    In fp32 the partition that the optimizer steps and the one that forward reads hold the same numbers. DeepSpeed means
    to share them with ZeRO-3, but compares a `torch.device` with its name, which is never equal; with ZeRO-1 and 2 it
    always copies. Its copy after the step then has nothing to do.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        pairs = list(zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_partitioned_groups_flat, strict=True))
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        groups = zip(optimizer.real_dp_process_group, optimizer.parallel_partitioned_bit16_groups, strict=True)
        own = [partitions[torch.distributed.get_rank(group)] for group, partitions in groups]
        pairs = list(zip(optimizer.single_partition_of_fp32_groups, own, strict=True))
    else:
        return
    shared = [
        (master, weights)
        for master, weights in pairs
        if weights is not None and master.dtype == weights.dtype and master.device == weights.device
    ]
    for master, weights in shared:
        master.data = weights.data
    if shared:
        # Every parameter holds a view of its part of the copy.
        optimizer._link_all_hp_params()


class CompactOptimizer(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """ZeRO-1 and 2 whose reduced gradients go into one flat partition at once, as DeepSpeed does it below fp32.

    In fp32 it keeps the reduced gradients as tensors of their own, and makes a flat copy of them for the optimizer.
    """

    def _use_compact_grad_partition_buffer(self, group_idx: int) -> bool:
        return True


def reduce_into_partition(optimizer: Any) -> None:
    """Let an fp32 optimizer without offload reduce its gradients into the partition that it steps with. Local.

    DeepSpeed builds its optimizers by itself, so the object is given its class afterwards.
    """
    if type(optimizer) is DeepSpeedZeroOptimizer and not optimizer.cpu_offload and optimizer.dtype == torch.float32:
        optimizer.__class__ = CompactOptimizer
