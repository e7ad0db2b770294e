"""The session of one rank of a run, from its first step to its last, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.config.plan import RunPlan
from trainer.loop.measures import Measures
from trainer.progress import Progress
from trainer.topology.groups import ParallelGroups


@dataclass(frozen=True, kw_only=True)
class Session:
    """One rank's session. The loop and its hooks are given it, besides the engine and the state."""

    plan: RunPlan
    groups: ParallelGroups
    hosts: Sequence[str]
    """Machine of every rank, in order of ranks."""
    progress: Progress = field(default_factory=Progress)
    """Notes of this rank's activity."""
    measures: Measures = field(default_factory=Measures)
    """Numbers noted here go into the next report."""
