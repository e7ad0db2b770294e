"""The whole model's weights on one rank, from an engine of any layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.engine.face import Engine
from trainer.tensor_parallel.shard import ShardSpec, unshard, without_padding
from trainer.topology.agreement import gather
from trainer.topology.groups import ParallelGroups

REPORTING_RANK = 0


@dataclass(frozen=True)
class _Source:
    """A tensor and the ranks that hold its shards, in the order of tensor-parallel ranks."""

    spec: ShardSpec
    ranks: tuple[int, ...]


class WeightGatherer:
    """Puts the weights together on the reporting rank, tensor by tensor.

    Ranks of the first replica send the shards that they hold; for a tied weight the first stage's copy is used.

    Args:
        engine: this rank's engine.
        is_sharded: true if data-parallel ranks must gather parameters together (ZeRO-3).
        groups: this rank's place.
    """

    def __init__(self, engine: Engine, is_sharded: bool, groups: ParallelGroups) -> None:
        self._engine = engine
        self._groups = groups
        self._is_sender = groups.place.dp_rank == 0
        self._takes_part = self._is_sender or is_sharded
        self._sources: list[_Source] | None = None

    def gather(self) -> dict[str, torch.Tensor] | None:
        """Return name -> whole tensor without vocabulary padding, fp32 on CPU; None on all ranks but the reporting one.

        Collective over the world.
        """
        if self._sources is None:
            self._sources = self._find_sources()
        local = self._engine.local_parameters() if self._takes_part else {}
        if self._groups.rank == REPORTING_RANK:
            return {source.spec.name: self._receive(source, local) for source in self._sources}
        if self._is_sender:
            for source in self._sources:
                if self._groups.rank in source.ranks:
                    self._groups.control.send(local[source.spec.name], REPORTING_RANK)
        return None

    def _receive(self, source: _Source, local: Mapping[str, torch.Tensor]) -> torch.Tensor:
        spec, parts = source.spec, []
        for rank in source.ranks:
            if rank == REPORTING_RANK:
                parts.append(local[spec.name])
                continue
            part = torch.empty(spec.local_shape(self._groups.tensor.size), dtype=torch.float32)
            parts.append(self._groups.control.receive(part, rank))
        return without_padding(unshard(parts, spec) if len(parts) > 1 else parts[0], spec)

    def _find_sources(self) -> list[_Source]:
        """Return the same list on every rank. Collective over the world."""
        specs = list(self._engine.shard_specs().values()) if self._is_sender else []
        mesh, found = self._groups.mesh, dict[str, _Source]()
        for rank, held in enumerate(gather(self._groups.control, specs)):
            place = mesh.coordinate(rank)
            if place.tp_rank != 0:
                continue
            for spec in held:
                width = 1 if spec.dim is None else mesh.tensor_parallel_size
                ranks = tuple(mesh.rank(place.stage, 0, tp_rank) for tp_rank in range(width))
                found.setdefault(spec.name, _Source(spec, ranks))
        return list(found.values())
