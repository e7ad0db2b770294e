"""The model-parallel unit that DeepSpeed's plain engine asks for, made from ParallelGroups (PP = 1)."""

from __future__ import annotations

import torch.distributed as dist

from trainer.topology.groups import ParallelGroups


class ModelParallelUnit:
    """DeepSpeed's `mpu` protocol for TP x DP. With one stage, model parallel and tensor parallel are the same ranks."""

    def __init__(self, groups: ParallelGroups) -> None:
        self._groups = groups

    def get_model_parallel_rank(self) -> int:
        """Return the tensor-parallel rank."""
        return self._groups.tensor.rank

    def get_model_parallel_world_size(self) -> int:
        """Return the tensor-parallel size."""
        return self._groups.tensor.size

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Return the tensor-parallel group."""
        return self._groups.tensor.handle

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        """Return this rank's place among those that average gradients."""
        return self._groups.gradients.rank

    def get_data_parallel_world_size(self) -> int:
        """Return the number of ranks that average gradients."""
        return self._groups.gradients.size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Return the group of ranks that average gradients."""
        return self._groups.gradients.handle
