"""Parameters that ZeRO-3 shards as they are made, so that no rank ever holds the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import Init
from torch import nn


class _Partitions(Init):  # type: ignore[misc]
    """DeepSpeed's conversion of a parameter into a partition, for parameters that are alike on all ranks."""

    def _zero_init_param(self, param: Any) -> None:
        # Before that, DeepSpeed would broadcast the first rank's values; ours come from one source.
        self._convert_to_deepspeed_param(param)
        param.partition()


class Partitioning:
    """Shards one parameter after the other over the data-parallel ranks, as ZeRO-3 holds them. Local.

    DeepSpeed shards an existing model, or patches the constructors of all modules and tensors so that nothing is ever
    whole. Here layers are built without memory, so that neither is needed.

    Args:
        settings: DeepSpeed's config.
        mpu: names the data-parallel ranks.
        dtype: dtype of the parameters.
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
