"""ZeRO-1 and 2 keep and reduce fp32 gradients as DeepSpeed does it, but in other places.

DeepSpeed builds its optimizers by itself, so an object is given one of these classes afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer, GradPartitionBufferGroup

from trainer.topology.exchange import Peers


class CompactOptimizer(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """ZeRO-1 and 2 whose reduced gradients go into one flat partition at once, as DeepSpeed does it below fp32.

    In fp32 it keeps the reduced gradients as tensors of their own, and makes a flat copy of them for the optimizer.
    """

    def _use_compact_grad_partition_buffer(self, group_idx: int) -> bool:
        return True

    def average_tensor(self, tensor: torch.Tensor, communication_data_type: torch.dtype) -> None:
        """Average a bucket of gradients over the replicas, and add to the partition what this rank steps.

        Between CPU ranks each sends every other what that one steps, and nothing else. DeepSpeed sums whole buckets on
        every rank, which is twice the traffic, by way of a flat copy and back.
        Collective over the data-parallel group.

        Args:
            tensor: the bucket, [n].
            communication_data_type: of the bucket.
        """
        ranks = torch.distributed.get_process_group_ranks(self.dp_process_group)
        if tensor.device.type != "cpu" or len(ranks) == 1:
            super().average_tensor(tensor, communication_data_type)
            return
        peers = Peers(self.dp_process_group, torch.distributed.get_rank(self.dp_process_group), tuple(ranks))
        tensor.div_(peers.size)
        places = self._places(tensor, communication_data_type)
        parts = [_joined([part for part, _, _ in places[rank]], tensor) for rank in range(peers.size)]
        total = peers.start_reduce_scatter(parts)()
        offset = 0
        for part, group, start in places[peers.rank]:
            into = self._get_compact_grad_partition_buffer(group).flat_partition
            into.narrow(0, start, part.numel()).add_(total.narrow(0, offset, part.numel()))
            offset += part.numel()

    def _places(
        self, tensor: torch.Tensor, communication_data_type: torch.dtype
    ) -> dict[int, list[tuple[torch.Tensor, int, int]]]:
        """Return what each rank steps of a bucket: (elements, parameter group, where in its partition), in order."""
        found: dict[int, list[tuple[torch.Tensor, int, int]]] = {rank: [] for rank in range(self.partition_count[0])}
        offset = 0
        for group, index, identity in self.ipg_buckets[communication_data_type].params:
            numel = self.bit16_groups[group][index].numel()
            for rank in self.param_to_partition_ids[group][identity]:
                first = self.grad_start_offset[group][rank][identity]
                start = self.grad_partition_insertion_offset[group][rank][identity]
                count = min(numel - first, self.partition_size[group] - start)
                found[rank].append((tensor.narrow(0, offset + first, count), group, start))
            offset += numel
        return found


def _joined(parts: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Return consecutive tensors as one; a view where they follow one another in memory."""
    if not parts:
        return like.new_empty(0)
    first, numel = parts[0], sum(part.numel() for part in parts)
    end = first.storage_offset()
    for part in parts:
        if part.storage_offset() != end:
            return torch.cat(parts)
        end += part.numel()
    return first.as_strided((numel,), (1,))


class FlatGradients(DeepSpeedZeroOptimizer):  # type: ignore[misc]
    """ZeRO-1 in fp32 between CPU ranks: all gradients lie in one tensor, as the weights do, and layers add to them.

    Every rank has the gradients of all layers until the last micro-batch, with stage 1. DeepSpeed copies each of them
    into a bucket, sums the bucket on every rank and copies the rank's own part out of it; here ranks exchange slices
    of the gradients themselves, and what a rank steps with is a part of them.
    """

    _held: list[torch.Tensor]

    def hold(self) -> None:
        """Give every parameter a place for its gradient. Local; called once."""
        # numpy asks the kernel for pages of zeros: they take memory only from the first backward on.
        self._held = [torch.from_numpy(np.zeros(flat.numel(), np.float32)) for flat in self.bit16_groups_flat]
        self._offer()

    def _offer(self) -> None:
        for weights, held, parameters in zip(self.bit16_groups_flat, self._held, self.bit16_groups, strict=True):
            for parameter in parameters:
                start = parameter.data.storage_offset() - weights.storage_offset()
                parameter.grad = held.narrow(0, start, parameter.numel()).view_as(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to zero, where they are."""
        for held in self._held:
            held.zero_()
        self._offer()

    def process_gradients(self, param: torch.nn.Parameter, i: int) -> None:
        """Leave a gradient that is complete where it is."""

    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Average over the replicas what this rank steps. Collective over the data-parallel group."""
        for group, held in enumerate(self._held):
            ranks = torch.distributed.get_process_group_ranks(self.real_dp_process_group[group])
            rank, size = torch.distributed.get_rank(self.real_dp_process_group[group]), len(ranks)
            partitions = held.view(size, -1)
            if size > 1:
                peers = Peers(self.real_dp_process_group[group], rank, tuple(ranks))
                for part in torch.split(partitions, max(1, self.reduce_bucket_size // size), dim=1):
                    part.div_(size)
                    part[rank].copy_(peers.start_reduce_scatter(list(part))())
            self.averaged_gradients[group] = GradPartitionBufferGroup(
                self._pieces(group, rank, partitions[rank]), partitions[rank]
            )

    def _pieces(self, group: int, rank: int, partition: torch.Tensor) -> list[torch.Tensor]:
        """Return the gradients in a rank's partition: one a parameter, in order, and the padding behind them."""
        starts, found, end = self.grad_partition_insertion_offset[group][rank], [], 0
        for parameter in self.params_in_partition[group]:
            identity = self.get_param_id(parameter)
            start, first = starts[identity], self.grad_start_offset[group][rank][identity]
            end = min(start + parameter.numel() - first, len(partition))
            found.append(partition[start:end])
        if end < len(partition):
            padding: Any = partition[end:]
            padding._zero_padding = True
            found.append(padding)
        return found
