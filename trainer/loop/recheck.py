"""A check that this machine computes the same bits twice. A faulty processor corrupts a run silently."""

from __future__ import annotations

import socket
from typing import NamedTuple

from trainer.config.plan import RunPlan
from trainer.engine.face import Engine, Recorded
from trainer.engine.fixed_batch import fixed_micro_batches
from trainer.errors import NumericsError
from trainer.loop.events import Hook
from trainer.topology.agreement import gather
from trainer.topology.groups import ParallelGroups


class Difference(NamedTuple):
    """The first result in which two passes of one rank differ."""

    rank: int
    host: str
    name: str
    is_received: bool
    """True if it came from another rank: then the fault is there, or on the way."""


def first_difference(one: list[Recorded], other: list[Recorded]) -> Recorded | None:
    """Return the first result that differs between two passes; None if none does."""
    for before, after in zip(one, other, strict=True):
        if before != after:
            return after
    return None


class Recheck(Hook):
    """A hook that runs the fixed micro-batch forward twice, every `runtime.recheck_every` steps.

    Dropout is off and no weight changes in between, so every layer must give the same bits. Results that came from
    other ranks are told apart from those computed here: a wrong result spreads, but only one rank is the first to have
    made it.

    Args:
        engine: the run's engine.
        plan: numbers of the run.
        groups: this rank's place.
        every: number of steps between checks; 0 for never.
    """

    def __init__(self, engine: Engine, plan: RunPlan, groups: ParallelGroups, every: int) -> None:
        self._engine, self._groups = engine, groups
        self._plan = plan
        self._every = every

    def on_step(self, step: int) -> None:
        """Compare when it is time. Collective over the world when it is; syncs the host with the device.

        Raises:
            NumericsError: two passes differ on some rank; raised on every rank.
        """
        if self._every == 0 or step % self._every:
            return
        batches = fixed_micro_batches(self._plan, self._groups.device)
        found = first_difference(self._engine.record(batches), self._engine.record(batches))
        mine = Difference(self._groups.rank, socket.gethostname(), found.name, found.is_received) if found else None
        differences = [other for other in gather(self._groups.control, mine) if other is not None]
        if not differences:
            return
        made = [other for other in differences if not other.is_received]
        first = (made or differences)[0]
        what = f"{first.name} of a fixed micro-batch" if made else "what it receives from other ranks"
        more = f" (and {len(made) - 1} other ranks)" if len(made) > 1 else ""
        raise NumericsError(
            f"rank {first.rank} on {first.host} must compute the same bits twice, but after step {step} {what} "
            f"differs{more}",
            hints=[
                "a processor, its memory or a link is likely to be faulty: take this machine out of the run",
                "go back to a checkpoint of before the last good check: checkpoint.resume=PATH in another run_dir",
            ],
        )
