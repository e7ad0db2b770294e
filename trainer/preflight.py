"""The agreement of a rank with the others before it does anything that takes long or changes anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from trainer.config.compose import Composition
from trainer.config.schema import TridentConfig
from trainer.config.shared import shared_values, with_shared
from trainer.engine.rendezvous import Place, meet
from trainer.engine.world import choose_device
from trainer.errors import TridentError
from trainer.launcher.environment import World
from trainer.log import say
from trainer.topology.muster import DisagreementError, Fact, Facts, LonelyError, Refusal
from trainer.versions import rank_versions

MeetingPlace = Store
"""The store in which the ranks have met, through which process groups are made."""
REFUSED_S = 20.0
"""Seconds that a rank which cannot take part waits for the others, to tell them."""


@dataclass(frozen=True)
class _Variable:
    """An environment variable that must be the same on all ranks."""

    why: str
    is_of_gpus: bool = False


VARIABLES: Mapping[str, _Variable] = {
    "TORCH_DISTRIBUTED_DEBUG": _Variable("DETAIL adds collectives, so ranks without it hang"),
    "DS_ACCELERATOR": _Variable("which device DeepSpeed computes on, and which library its ranks talk through"),
    "DEEPSPEED_COMM_BACKEND": _Variable("which library DeepSpeed's ranks talk through"),
    "TORCHDYNAMO_DISABLE": _Variable("whether programs are compiled, whose last bits differ"),
    "TORCH_COMPILE_DISABLE": _Variable("whether programs are compiled, whose last bits differ"),
    "TORCHINDUCTOR_MAX_AUTOTUNE": _Variable("which kernels are compiled, whose last bits differ"),
    "MKL_CBWR": _Variable("which code path MKL takes, whose last bits differ"),
    "NCCL_ALGO": _Variable("NCCL hangs or fails where ranks choose differently", is_of_gpus=True),
    "NCCL_PROTO": _Variable("NCCL hangs or fails where ranks choose differently", is_of_gpus=True),
    "NCCL_MIN_NCHANNELS": _Variable("NCCL hangs where ranks have different numbers of channels", is_of_gpus=True),
    "NCCL_MAX_NCHANNELS": _Variable("NCCL hangs where ranks have different numbers of channels", is_of_gpus=True),
    "NCCL_NVLS_ENABLE": _Variable("NCCL hangs where only some ranks use it", is_of_gpus=True),
    "NCCL_COLLNET_ENABLE": _Variable("NCCL hangs where only some ranks use it", is_of_gpus=True),
    "NVIDIA_TF32_OVERRIDE": _Variable("with how many bits a GPU multiplies", is_of_gpus=True),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": _Variable("with how many bits a GPU multiplies", is_of_gpus=True),
    "CUBLAS_WORKSPACE_CONFIG": _Variable("which sums of a GPU are the same each time", is_of_gpus=True),
}
"""Name -> reason why ranks that differ in it do not go on. Other variables may differ: names of this machine's own
devices, networks, folders and threads (CUDA_VISIBLE_DEVICES, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, TRIDENT_CACHE,
OMP_NUM_THREADS, which runtime.threads_per_rank replaces), and those that only rank 0 reads (WANDB_*)."""


def join(composition: Composition, world: World) -> tuple[TridentConfig, Store | None]:
    """Meet the other ranks and agree with them on what is trained, within seconds of their coming.

    Returns:
        The config that all ranks have, except for the keys that may differ; and the store in which they met, or None if
        there is nobody to meet, or the process had joined a world already.

    Raises:
        DisagreementError: they do not agree, or one of them cannot take part: rank 0 reports it.
        LonelyError: this rank cannot take part, and no other knows it.
        ConfigError: the place where ranks meet cannot be used.
        PeerLostError: a rank did not come within `runtime.timeout_s`.
    """
    config = composition.config
    if world.size == 1 or dist.is_initialized():
        return config, None
    try:
        device = choose_device(config.runtime.device, world.local_rank)
        facts = {**shared_facts(composition), **_facts_of_the_world(world, device, os.environ)}
    except TridentError as error:
        decline(error)
    store, agreed = meet(Place.of_environment(), config.runtime.timeout_s, facts)
    for note in agreed.notes:
        say(note)
    return with_shared(config, agreed.taken) if agreed.taken else config, store


def decline(error: TridentError) -> NoReturn:
    """Tell the other ranks that this one cannot take part, so that none waits for it, and raise.

    Raises:
        DisagreementError: the others know, and rank 0 tells why the run does not begin.
        LonelyError: they could not be told, so this rank has to say it.
        TridentError: the error itself, if no rank knows where to meet.
    """
    try:
        place = Place.of_environment()
    except TridentError:
        # No rank has a place to meet.
        raise error from None
    try:
        meet(place, REFUSED_S, Refusal.of(error))
    except (DisagreementError, LonelyError):
        raise
    except TridentError as found:
        raise LonelyError(error.problems, error.hints) from found
    raise AssertionError("ranks that know of a refusal do not agree")


def shared_facts(composition: Composition) -> Facts:
    """Return the facts that the configs of all ranks must have alike."""
    return {key: Fact(value, source) for key, (value, source) in shared_values(composition).items()}


def _facts_of_the_world(world: World, device: torch.device, environ: Mapping[str, str]) -> Facts:
    """Return the other facts that must be the same: the number of ranks, their device, and their software."""
    on_gpus = device.type == "cuda"
    facts: dict[str, object] = {
        "the number of ranks (WORLD_SIZE)": world.size,
        "the kind of device (runtime.device)": device.type,
        **rank_versions(),
    }
    if on_gpus:
        facts["the version of NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    for name, variable in VARIABLES.items():
        if on_gpus or not variable.is_of_gpus:
            facts[f"the environment variable {name}"] = environ.get(name, "not set")
    return {name: Fact(value) for name, value in facts.items()}
