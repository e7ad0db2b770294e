"""Reports of all ranks and nodes to the reporting rank: memory and the state of every node, in one collective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from trainer.loop.events import StepReport
from trainer.metrics.memory import MemoryMeter, MemoryPeaks
from trainer.metrics.node import NODE_NAMES, NodeMeter
from trainer.metrics.straggler import RankTimes
from trainer.topology.groups import Group


@dataclass(frozen=True)
class Across:
    """A reading of the whole world."""

    fullest: MemoryPeaks
    """Each number is that of the rank with the highest."""
    stages: tuple[float, ...]
    """Peak of allocated memory in GiB of the fullest rank of each stage."""
    nodes: tuple[Mapping[str, float], ...]
    """Names of `NODE_NAMES` -> values of each node, in order of ranks; names that were not read now are left out."""
    busy_ms: tuple[float, ...] = ()
    """Forward and backward of a step on the busiest rank of each stage; NaN with one stage."""
    times: tuple[RankTimes, ...] = ()
    """Times of every rank."""
    used: tuple[float, ...] = ()
    """Peak in GiB, as a prediction counts it (`MemoryPeaks.used_gib`), of the fullest rank of each stage."""


class AcrossMeter:
    """Lives on every rank.

    A node is read by the rank that has local rank 0 there, so that no other process is needed and none can hang:
    the numbers come along with those of memory, when all ranks meet anyhow.

    Args:
        memory: meter of this rank.
        node: meter of this node; None on all of its ranks but one, and if node metrics are off.
        stages: stage of every rank, in order of ranks.
        control: a group on CPU over the whole world.
    """

    def __init__(self, memory: MemoryMeter, node: NodeMeter | None, stages: Sequence[int], control: Group) -> None:
        self._memory = memory
        self._node = node
        self._stages = tuple(stages)
        self._control = control

    def sample(self) -> None:
        """Sample this rank's memory. Local, no device sync."""
        self._memory.sample()

    def measure(self, report: StepReport) -> Across:
        """Return the reading, the same on every rank. Collective over `control` (all-gather on CPU); no device sync.

        Args:
            report: this rank's report, whose times are sent along.
        """
        peaks = self._memory.peaks()
        node = self._node.read() if self._node is not None else {}
        mine = [peaks.allocated_gib, peaks.reserved_gib, peaks.used_gib]
        mine += [report.busy_ms, report.own_ms, report.data_wait_ms]
        mine += [float(self._node is not None), *(node.get(name, math.nan) for name in NODE_NAMES)]
        table = self._control.all_gather(torch.tensor([mine], dtype=torch.float64)).tolist()
        allocated, reserved, used, busy, own, waits, has_node = list(zip(*table, strict=True))[:7]
        nodes = (dict(zip(NODE_NAMES, row[7:], strict=True)) for row, has in zip(table, has_node, strict=True) if has)
        return Across(
            fullest=MemoryPeaks(max(allocated), max(reserved), max(used)),
            stages=self._fullest_by_stage(allocated),
            nodes=tuple({name: value for name, value in found.items() if not math.isnan(value)} for found in nodes),
            used=self._fullest_by_stage(used),
            busy_ms=self._fullest_by_stage(busy),
            times=tuple(RankTimes(*entry) for entry in zip(own, waits, strict=True)),
        )

    def _fullest_by_stage(self, values: Sequence[float]) -> tuple[float, ...]:
        """Return the highest value in each stage, given the values of all ranks."""
        by_stage: dict[int, list[float]] = {stage: [] for stage in range(1 + max(self._stages))}
        for stage, value in zip(self._stages, values, strict=True):
            by_stage[stage].append(value)
        return tuple(max(found) for found in by_stage.values())
