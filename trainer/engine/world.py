"""Starting the communication of the ranks, and the device of this rank."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from trainer.config.schema import DeviceKind, Dtype, RuntimeConfig
from trainer.engine.process_patches import let_cpus_compute_fp16, let_starts_not_wait_for_compilers
from trainer.engine.rendezvous import Place, meet
from trainer.errors import ConfigError, PeerLostError, first_line
from trainer.log import warn
from trainer.machine import shared_memory_problem, usable_cores
from trainer.mesh import Mesh
from trainer.topology.dist_group import make_groups
from trainer.topology.groups import ParallelGroups


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


def rank_threads(configured: int | None, world_size: int) -> int:
    """Return the number of CPU threads of a rank on this machine.

    Args:
        configured: `runtime.threads_per_rank`.
        world_size: number of ranks.
    """
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size)
    return configured or max(1, usable_cores() // local_ranks)


def warn_of_small_shared_memory(local_ranks: int) -> None:
    """Warn, once a machine, if /dev/shm is smaller than NCCL needs. gloo needs none."""
    problem = shared_memory_problem(local_ranks) if os.environ.get("LOCAL_RANK", "0") == "0" else None
    if problem is not None:
        warn(problem)


def start_world(mesh: Mesh, runtime: RuntimeConfig, device: torch.device, store: Store | None = None) -> ParallelGroups:
    """Initialise torch.distributed, DeepSpeed's communication and all groups.

    Args:
        mesh: the run's mesh.
        runtime: threads and time-outs.
        device: this rank's device.
        store: the store in which the ranks have met; None: they meet here.
    """
    torch.set_num_threads(rank_threads(runtime.threads_per_rank, mesh.size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
        warn_of_small_shared_memory(int(os.environ.get("LOCAL_WORLD_SIZE") or mesh.size))
    timeout = timedelta(seconds=runtime.timeout_s)
    if not dist.is_initialized():
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
            os.environ.setdefault(name, value)
        _join(mesh.size, "nccl" if device.type == "cuda" else "gloo", timeout, store)
    import deepspeed

    let_starts_not_wait_for_compilers()
    if device.type == "cpu":
        from trainer.engine.cpu_backend import speak_by_messages

        speak_by_messages(timeout)
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    if device.type == "cpu":
        let_cpus_compute_fp16()
    return make_groups(mesh, device, timeout)


def check_precision(dtype: Dtype) -> None:
    """Check that the device of this rank computes in the run's dtype; only some of the ranks may lack it.

    Raises:
        ConfigError: it does not.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    if dtype is Dtype.fp16 and not accelerator.is_fp16_supported():
        raise ConfigError("precision.dtype=fp16 needs a GPU that computes in fp16, but this one does not; use fp32")


def _join(world_size: int, backend: str, timeout: timedelta, store: Store | None = None) -> None:
    if world_size == 1:
        # A single rank has nobody to meet: no port is opened, and the variables that another launcher left are not
        # read.
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
