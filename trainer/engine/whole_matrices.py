"""Matrices that ranks hold in parts are put together on one rank each, changed there, and handed back in parts.

ZeRO gives a replica a run of a flattened shard, tensor parallelism gives a rank a shard of a tensor. What needs a whole
matrix gets it in two moves and gives the result back in two: over the replicas to the one that holds most of the shard,
then over the tensor-parallel ranks to one of them, in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainer.tensor_parallel.init import tensor_spec
from trainer.tensor_parallel.shard import ShardSpec, first_element, shard, shard_spec, unshard
from trainer.topology.groups import Group, ParallelGroups

Run = tuple[int, int]
"""First element and number of elements of a flattened shard."""
Change = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""(whole tensor [rows, columns], rows of the matrices in it) -> what becomes of it, of the same shape."""


@dataclass(frozen=True)
class Matrix:
    """A parameter that is a matrix, or several one below the other, as all ranks hold it."""

    spec: ShardSpec
    """Sharding over the tensor-parallel ranks of the whole that this parameter is a shard of."""
    sections: tuple[int, ...]
    """Rows of the matrices in the whole."""
    runs: tuple[Run, ...]
    """Runs of the shard that the replicas hold, in their order; one entry if all hold the same."""

    def owner(self, turn: int) -> int:
        """Return the replica that puts the shard together: the one with most of it, of equal ones by turns."""
        most = max(numel for _, numel in self.runs)
        holders = [replica for replica, (_, numel) in enumerate(self.runs) if numel == most]
        return holders[turn % len(holders)]


def matrix_of(parameter: nn.Parameter, runs: Sequence[Run]) -> Matrix:
    """Return a parameter's matrix. Rows that all tensor-parallel ranks hold are a parameter and a whole of their own.

    Args:
        parameter: a parameter of two dimensions, or what ZeRO-3 has left of it.
        runs: see `Matrix.runs`.
    """
    spec, cut = shard_spec(parameter), tensor_spec(parameter).cut
    rows, columns = spec.global_shape
    count = len(spec.sections) - spec.whole_sections
    if spec.whole_sections:
        is_shared = first_element(parameter) > 0
        own = spec.sections[count:] if is_shared else spec.sections[:count]
        shape = (sum(own), columns)
        whole = ShardSpec(spec.name, shape) if is_shared else ShardSpec(spec.name, shape, 0, own)
        return Matrix(whole, own, tuple(runs))
    sections = cut.sections if cut is not None and cut.dim == 0 else (rows,)
    return Matrix(spec, sections, tuple(runs))


class WholeMatrices:
    """Changes some matrices whole.

    Args:
        matrices: the same on all ranks of a stage, in the same order.
        groups: this rank's place.
    """

    def __init__(self, matrices: Sequence[Matrix], groups: ParallelGroups) -> None:
        self._tensor = groups.tensor
        self._replicas = groups.gradients if any(len(one.runs) > 1 for one in matrices) else None
        self._matrices = matrices
        self._owners = [one.owner(turn) for turn, one in enumerate(matrices)]
        rank = 0 if self._replicas is None else self._replicas.rank
        self._mine = [index for index, owner in enumerate(self._owners) if owner == rank]

    def change(self, held: Sequence[torch.Tensor], change: Change) -> list[torch.Tensor]:
        """Return this rank's runs of the changed matrices. Collective over replicas and tensor-parallel ranks.

        Two exchanges over each of the two groups: every element travels at most twice there and twice back. Replicas
        that all hold the same compute the same. No host sync.

        Args:
            held: this rank's run of each matrix, [numel], in order.
            change: the change.
        """
        shards = [held[index] for index in self._mine] if self._replicas is None else self._to_owners(held)
        changed = self._over_shards(shards, change)
        return changed if self._replicas is None else self._to_holders(changed, held[0])

    def _counts(self, replica: int, owner: int) -> int:
        """Return the elements that a replica holds of what another one owns."""
        pairs = zip(self._matrices, self._owners, strict=True)
        return sum(matrix.runs[replica][1] for matrix, own in pairs if own == owner)

    def _to_owners(self, held: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        group = self._replicas
        assert group is not None
        owned = [[i for i, owner in enumerate(self._owners) if owner == replica] for replica in range(group.size)]
        parts = [_joined([held[index] for index in own], held[0]) for own in owned]
        arrived = group.all_to_all_parts(parts, [self._counts(replica, group.rank) for replica in range(group.size)])
        shards = [held[0].new_empty(_local_numel(self._matrices[index], self._tensor.size)) for index in self._mine]
        for replica, values in enumerate(arrived):
            runs = [self._matrices[index].runs[replica] for index in self._mine]
            for (start, numel), whole, run in zip(runs, shards, torch.split(values, [n for _, n in runs]), strict=True):
                whole.narrow(0, start, numel).copy_(run)
        return shards

    def _to_holders(self, shards: Sequence[torch.Tensor], like: torch.Tensor) -> list[torch.Tensor]:
        group = self._replicas
        assert group is not None
        parts = []
        for replica in range(group.size):
            runs = [self._matrices[index].runs[replica] for index in self._mine]
            cut = [whole.narrow(0, start, numel) for whole, (start, numel) in zip(shards, runs, strict=True)]
            parts.append(_joined(cut, like))
        arrived = group.all_to_all_parts(parts, [self._counts(group.rank, owner) for owner in range(group.size)])
        found: list[torch.Tensor] = [like] * len(self._matrices)
        for owner, values in enumerate(arrived):
            indices = [index for index, own in enumerate(self._owners) if own == owner]
            sizes = [self._matrices[index].runs[group.rank][1] for index in indices]
            for index, run in zip(indices, torch.split(values, sizes), strict=True):
                found[index] = run
        return found

    def _over_shards(self, shards: Sequence[torch.Tensor], change: Change) -> list[torch.Tensor]:
        """Return the changed shards: those that ranks share go to one of them, in turn, and come back."""
        group, found = self._tensor, list(shards)
        size = group.size
        split = []
        for place, index in enumerate(self._mine):
            matrix = self._matrices[index]
            if matrix.spec.dim is None or size == 1:
                found[place] = change(shards[place].view(matrix.spec.global_shape), matrix.sections).reshape(-1)
            else:
                split.append(place)
        if not split:
            return found
        turns = [split[rank::size] for rank in range(size)]
        like = shards[split[0]]
        sent = [_joined([shards[place] for place in own], like) for own in turns]
        counts = [sum(shards[place].numel() for place in own) for own in turns]
        arrived = group.all_to_all_parts(sent, [counts[group.rank]] * size)
        sizes = [shards[place].numel() for place in turns[group.rank]]
        columns = zip(*(torch.split(values, sizes) for values in arrived), strict=True) if sizes else ()
        back: list[list[torch.Tensor]] = [[] for _ in range(size)]
        for place, parts in zip(turns[group.rank], columns, strict=True):
            matrix = self._matrices[self._mine[place]]
            local = matrix.spec.local_shape(size)
            whole = change(unshard([part.view(local) for part in parts], matrix.spec), matrix.sections)
            for rank in range(size):
                back[rank].append(shard(whole, matrix.spec, rank, size).view(-1))
        for own, values in zip(turns, group.all_to_all_parts([_joined(b, like) for b in back], counts), strict=True):
            for place, part in zip(own, torch.split(values, [shards[place].numel() for place in own]), strict=True):
                found[place] = part
        return found


def _local_numel(matrix: Matrix, size: int) -> int:
    return math.prod(matrix.spec.local_shape(size))


def _joined(parts: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts]) if parts else like.new_empty(0)


def runs_of(own: Sequence[Run | None], group: Group) -> list[tuple[Run, ...]]:
    """Return what each rank of a group holds of each of some tensors. Collective; every rank names as many.

    Args:
        own: this rank's run of each; None: nothing.
        group: the replicas.
    """
    everyone = group.gather_objects([run or (0, 0) for run in own])
    return list(zip(*everyone, strict=True))
