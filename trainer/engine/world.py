"""Bring up the ranks' communication and the device of this rank."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from trainer.config.plan import RunPlan
from trainer.config.schema import DeviceKind, Dtype
from trainer.engine.host_memory import LARGEST_KEPT, keep_freed_memory
from trainer.engine.process_patches import let_cpus_compute_fp16, let_starts_not_wait_for_compilers
from trainer.engine.rendezvous import Place, meet
from trainer.errors import ConfigError, PeerLostError, first_line
from trainer.log import warn
from trainer.machine import shared_memory_problem, usable_cores
from trainer.topology.agreement import together
from trainer.topology.grid import Grid
from trainer.topology.groups import DistGroup, ParallelGroups, make_groups


def choose_device(kind: DeviceKind, local_rank: int) -> torch.device:
    """Return the device of this rank.

    Raises:
        ConfigError: CUDA is asked for, but there is no device with this index.
    """
    count = torch.cuda.device_count()
    if kind is DeviceKind.cpu or (kind is DeviceKind.auto and count == 0):
        return torch.device("cpu")
    # Every rank of the node sees the same numbers, so all of them raise and none waits for the others.
    local_ranks = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if local_ranks > count:
        raise ConfigError(
            f"runtime.device={kind.value} needs a CUDA device for each rank, but this node has {count} and starts "
            f"{local_ranks} ranks; start fewer ranks or set runtime.device=cpu"
        )
    return torch.device("cuda", local_rank)


def rank_threads(plan: RunPlan) -> int:
    """Return how many CPU threads a rank computes with on this machine."""
    configured = plan.config.runtime.threads_per_rank
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or plan.world_size)
    return configured or max(1, usable_cores() // local_ranks)


def warn_of_small_shared_memory(local_ranks: int) -> None:
    """Warn, once a machine, if /dev/shm is smaller than what NCCL takes of it. gloo takes none."""
    problem = shared_memory_problem(local_ranks) if os.environ.get("LOCAL_RANK", "0") == "0" else None
    if problem is not None:
        warn(problem)


def start_world(plan: RunPlan, device: torch.device, store: Store | None = None) -> tuple[ParallelGroups, DistGroup]:
    """Initialise torch.distributed, DeepSpeed's communication and all groups.

    Args:
        plan: numbers of the run.
        device: of this rank.
        store: in which the ranks have met; None: they meet here.

    Returns:
        The groups of the mesh, and a gloo group over the world for host-side agreement (stop flags, memory, errors),
        which never touches the device.
    """
    torch.set_num_threads(rank_threads(plan))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        warn_of_small_shared_memory(int(os.environ.get("LOCAL_WORLD_SIZE") or plan.world_size))
    else:
        keep_freed_memory(LARGEST_KEPT.get(plan.zero_stage))
    timeout = timedelta(seconds=plan.config.runtime.timeout_s)
    if not dist.is_initialized():
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
            os.environ.setdefault(name, value)
        _join(plan, "nccl" if device.type == "cuda" else "gloo", timeout, store)
    import deepspeed

    let_starts_not_wait_for_compilers()
    if device.type == "cpu":
        from trainer.engine.cpu_backend import speak_by_messages

        speak_by_messages(timeout)
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    grid = Grid(plan.pipeline_parallel_size, plan.data_parallel_size, plan.tensor_parallel_size)
    groups = make_groups(grid, device)
    control = host_group(plan, groups)
    # Only some of the ranks may lack it.
    together(control, lambda: _check_precision(plan, device), is_of_machine=True)
    return groups, control


def host_group(plan: RunPlan, groups: ParallelGroups) -> DistGroup:
    """Return a new gloo group over the world, for a thread's collectives on host memory. Collective over the world."""
    handle = dist.new_group(backend="gloo", timeout=timedelta(seconds=plan.config.runtime.timeout_s))
    return DistGroup(handle, groups.rank, plan.world_size, tuple(range(plan.world_size)))


def _check_precision(plan: RunPlan, device: torch.device) -> None:
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    if device.type == "cpu":
        let_cpus_compute_fp16()
    if plan.config.precision.dtype is Dtype.fp16 and not accelerator.is_fp16_supported():
        raise ConfigError("precision.dtype=fp16 needs a GPU that computes in fp16, but this one does not; use fp32")


def _join(plan: RunPlan, backend: str, timeout: timedelta, store: Store | None = None) -> None:
    if plan.world_size == 1:
        # Alone there is nobody to meet: no port is opened, and what another launcher left in the environment is not
        # looked at.
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, timeout=timeout, store=alone, rank=0, world_size=1)
        return
    place = Place.of_environment()
    store = store or meet(place, timeout.total_seconds())[0]
    store.set_timeout(timeout)
    try:
        dist.init_process_group(backend, timeout=timeout, store=store, rank=place.rank, world_size=place.size)
    except (dist.DistError, RuntimeError) as error:
        raise PeerLostError(
            f"every rank must be able to reach every other, but rank {place.rank} could not connect: "
            f"{first_line(error)}",
            hints=[
                "see whether a rank ended, and whether GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, where they are set, "
                "name a network that leads to the other machines",
                "start the same command again on every machine",
            ],
        ) from error


def stop_world() -> None:
    """Leave torch.distributed, if it is up."""
    if dist.is_initialized():
        dist.destroy_process_group()
