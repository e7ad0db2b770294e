"""The rank of a layout that writes each element of a tensor, from the plan alone: no process groups, no DeepSpeed.

Stages and tensor-parallel shards are those of training. Over the data-parallel ranks every shard is split evenly, as
ranks do without ZeRO; with ZeRO, DeepSpeed splits a flat buffer of all parameters, so that real ranks would write the
same elements in other pieces. This makes no difference to a reader: each element is there once, in a file of its stage
and tensor-parallel rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config.plan import RunPlan
from trainer.errors import CheckpointError
from trainer.pipeline.partition import stages
from trainer.tensor_parallel.shard import ShardSpec, shard_spec_of


@dataclass(frozen=True)
class Share:
    """Consecutive elements of a tensor-parallel shard, and the rank that writes them."""

    rank: int
    tp_rank: int
    start: int
    numel: int


class Placement:
    """The ranks of a plan, and the elements that each writes."""

    def __init__(self, plan: RunPlan) -> None:
        self._mesh = plan.mesh
        layers = ((stage.rank_index, layer) for stage in stages(plan) for layer in stage.layers)
        self._stage_of = {tensor.name: stage for stage, layer in layers for tensor in layer.tensors()}
        self._tensors = plan.model.tensors
        self._vocab_unit = plan.execution.vocab_unit

    @property
    def tensor_parallel_size(self) -> int:
        """Number of ranks that a tensor is sharded over."""
        return self._mesh.tensor_parallel_size

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._mesh.size

    def spec(self, saved: ShardSpec) -> ShardSpec:
        """Return how a tensor is sharded in this layout, given its sharding in another.

        Raises:
            CheckpointError: it does not belong to the plan's model.
        """
        self._check_known(saved.name)
        here = shard_spec_of(self._tensors[saved.name], self._vocab_unit, self.tensor_parallel_size)
        if saved.unpadded_shape != here.unpadded_shape:
            raise CheckpointError(
                f"{saved.name} must have shape {here.unpadded_shape} in the model of the checkpoint's config, but has "
                f"{saved.unpadded_shape}"
            )
        return here

    def shares(self, spec: ShardSpec) -> Iterator[Share]:
        """Yield each rank's elements of a tensor, by rank: over all ranks, every element once.

        A tied embedding is written by the stage that looks tokens up; a tensor that is not sharded is written by the
        first tensor-parallel rank.

        Raises:
            CheckpointError: the tensor belongs to no layer of the model.
            ConfigError: a block cannot be sharded over the tensor-parallel size.
        """
        self._check_known(spec.name)
        stage, dp = self._stage_of[spec.name], self._mesh.data_parallel_size
        numel = math.prod(spec.local_shape(self.tensor_parallel_size))
        for dp_rank in range(dp):
            start, end = numel * dp_rank // dp, numel * (dp_rank + 1) // dp
            for tp_rank in range(self.tensor_parallel_size if spec.dim is not None else 1):
                if end > start:
                    yield Share(self._mesh.rank(stage, dp_rank, tp_rank), tp_rank, start, end - start)

    def _check_known(self, name: str) -> None:
        if name not in self._stage_of:
            raise CheckpointError(f"{name} must be a tensor of the model of the checkpoint's config, but is of none")
