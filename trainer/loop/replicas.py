"""A check that copies of weights on several ranks are still equal: faults of memory or of a kernel make them differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import torch

from trainer.engine.face import Engine
from trainer.errors import NumericsError
from trainer.loop.events import Hook
from trainer.tensor_parallel.shard import shared_part
from trainer.topology.agreement import gather
from trainer.topology.groups import ParallelGroups

Holder = tuple[str, int, int]
"""Identifies ranks with the same weights: (axis over which there are copies, stage, rank on the other axis)."""


class _Hashes(NamedTuple):
    """Hashes of one rank's weights."""

    rank: int
    holders: tuple[Holder, Holder]
    values: tuple[str, str]


class ReplicaCheck(Hook):
    """A hook that compares hashes every `runtime.check_replicas_every` steps.

    The weights that forward reads are compared: the data-parallel ranks of a shard hold copies of all of it, its
    tensor-parallel ranks copies of the tensors that are not sharded (norms, some biases, learned positions) and of the
    rows of keys and values that they share.

    Args:
        engine: the run's engine.
        groups: this rank's place.
        every: number of steps between checks; 0 for never.
    """

    def __init__(self, engine: Engine, groups: ParallelGroups, every: int) -> None:
        self._engine, self._groups = engine, groups
        self._every = every
        place = groups.place
        self._holders: tuple[Holder, Holder] = (
            ("data", place.stage, place.tp_rank),
            ("tensor", place.stage, place.dp_rank),
        )

    def on_step(self, step: int) -> None:
        """Compare when it is time. Collective over the world when it is; copies the weights to the CPU.

        Raises:
            NumericsError: copies differ; raised on every rank.
        """
        if self._every == 0 or step % self._every:
            return
        specs, weights = self._engine.shard_specs(), self._engine.local_parameters()
        size = self._groups.tensor.size
        parts = {name: shared_part(tensor, specs[name], size) for name, tensor in weights.items()}
        whole = {name: part for name, part in parts.items() if part is not None}
        if self._differing(weights, whole) is None:
            return
        # All ranks come here: they saw the same hashes. Finding the tensor takes a hash of each one.
        names = sorted({name for found in gather(self._groups.control, list(weights)) for name in found})
        wrong = [
            (name, ranks) for name in names if (ranks := self._differing(_only(weights, name), _only(whole, name)))
        ]
        name, ranks = wrong[0]
        more = f" (and {len(wrong) - 1} other tensors)" if len(wrong) > 1 else ""
        raise NumericsError(
            f"ranks {ranks[0]} and {ranks[1]} must hold the same {name}, but after step {step} they differ{more}",
            hints=[
                "a device or its memory is likely to be faulty: look at the machines of these ranks",
                "go back to a checkpoint of before the last good check: checkpoint.resume=PATH in another run_dir",
            ],
        )

    def _differing(
        self, weights: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]
    ) -> tuple[int, int] | None:
        """Return two ranks whose copies differ, the same ones on every rank, or None. Collective over the world."""
        mine = _Hashes(self._groups.rank, self._holders, (_hash(weights), _hash(whole)))
        seen: dict[Holder, tuple[str, int]] = {}
        for other in gather(self._groups.control, mine):
            for holder, value in zip(other.holders, other.values, strict=True):
                known, rank = seen.setdefault(holder, (value, other.rank))
                if known != value:
                    return rank, other.rank
        return None


def _only(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {name: tensors[name]} if name in tensors else {}


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
