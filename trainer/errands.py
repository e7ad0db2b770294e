"""The composition root of verbs that use a model without training: one process that does, or one rank of a layout."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from trainer import interruption
from trainer.config.schema import RuntimeConfig
from trainer.engine.rendezvous import Place, meet
from trainer.engine.world import choose_device, start_world, stop_world
from trainer.garbage import look_as_usual
from trainer.inference.model_source import ModelSource
from trainer.launcher.environment import World
from trainer.launcher.errand import AGAIN, LOGS_VARIABLE
from trainer.launcher.guard import RankGuard
from trainer.launcher.output import send_output_to
from trainer.log import use_terminal
from trainer.progress import JOINING, LOADING, current
from trainer.topology.agreement import gather, together
from trainer.topology.groups import ParallelGroups, single_process_groups
from trainer.topology.muster import Fact, Facts


@dataclass(frozen=True)
class Errand:
    """Work of a verb on a model."""

    source: ModelSource
    facts: Mapping[str, object]
    """Facts that all ranks must have alike."""
    work: Callable[[ParallelGroups], object]
    """Does it, on each rank. Collective over the layout."""

    @property
    def runtime(self) -> RuntimeConfig:
        """Device, threads and time-outs."""
        return self.source.plan.config.runtime


def do_alone(errand: Errand) -> None:
    """Do it in this process.

    Raises:
        TridentError: as its work.
    """
    look_as_usual()
    runtime = errand.runtime
    if runtime.threads_per_rank is not None:
        torch.set_num_threads(runtime.threads_per_rank)
    current().enter(LOADING)
    errand.work(single_process_groups(choose_device(runtime.device, 0)))


def join(errand: Errand, world: World) -> Store | None:
    """Meet the other ranks and agree with them on what is done; return the store, or None if they met before.

    Raises:
        DisagreementError: they do not agree, or one of them cannot take part: rank 0 reports it.
        LonelyError: this rank cannot take part, and no other knows it.
        PeerLostError: a rank did not come within `runtime.timeout_s`.
    """
    current().enter(JOINING)
    if dist.is_initialized():
        return None
    runtime = errand.runtime
    facts = _facts(errand, choose_device(runtime.device, world.local_rank))
    return meet(Place.of_environment(), runtime.timeout_s, facts)[0]


def do_as_rank(errand: Errand, world: World, store: Store | None) -> int:
    """Do it as one rank of a launched world, and return the exit code. Collective over all ranks.

    Args:
        errand: the same on every rank.
        world: the world of the ranks.
        store: the store in which they met.
    """
    look_as_usual()
    runtime = errand.runtime
    device = choose_device(runtime.device, world.local_rank)
    groups = start_world(errand.source.plan.mesh, runtime, device, store)
    logs = _logs(groups)
    together(groups.control, lambda: use_terminal(*send_output_to(logs / f"rank_{groups.rank}.log")))
    guard = RankGuard(logs, groups.rank, AGAIN)
    together(groups.control, guard.enter)
    interruption.before_end(guard.interrupted)
    try:
        current().enter(LOADING)
        errand.work(groups)
        # Nobody leaves before all are done: a rank that is gone looks like one that was lost.
        gather(groups.control, None)
    except BaseException as error:
        return guard.fail(error)
    interruption.settle(0)
    guard.leave()
    stop_world()
    if LOGS_VARIABLE not in os.environ:
        shutil.rmtree(logs, ignore_errors=True)
    return 0


def _facts(errand: Errand, device: torch.device) -> Facts:
    facts = {**errand.facts, "the kind of device (runtime.device)": device.type}
    return {name: Fact(value) for name, value in facts.items()}


def _logs(groups: ParallelGroups) -> Path:
    """Return the folder of the ranks' logs: the one that their parent made, or one of rank 0's choice."""
    mine = os.environ.get(LOGS_VARIABLE) or (tempfile.mkdtemp(prefix="trident_ranks_") if groups.rank == 0 else "")
    return Path(gather(groups.control, mine)[0])
